//! What the runs of a round read of the accounts, in a file of the state directory until the round is over.
//!
//! A line of JSON, the accounts, the records of a [`Spool`], and a checksum of all that. The file is written anew by
//! each run and then replaces the last one, so that a run that is killed leaves the last one as it was.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crc::{CRC_64_XZ, Crc};
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::task::{spawn_blocking, yield_now};

use super::file_spool::Spool;
use crate::plan::report::Exempt;
use crate::plan::round::RoundFile;
use crate::synapse::MediaOwner;
use crate::values::clock::Timestamp;

/// Changes with the format, so that no version of microglia reads what it does not understand.
const FORMAT: &str = "microglia purge-local-media round 2";
const CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);
const CRC_LENGTH: u64 = 8;
/// In bytes.
const MAX_HEADER: u64 = 4096;
const PIECE: usize = 1 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    definition: String,
    started_at_ms: i64,
    /// Bytes of the accounts and of the records.
    accounts: u64,
    records: u64,
}

/// How far an account was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AccountState {
    Unread,
    Read,
    /// Synapse has files of the account, but lists none.
    Unlisted,
}

/// How many of an account's old files are left alone, for each of [`EXEMPT`].
pub(super) type LeftAlone = [u32; EXEMPT.len()];

/// Why files that a list shows are left alone.
pub(super) const EXEMPT: [Exempt; 3] = [Exempt::Quarantined, Exempt::Protected, Exempt::Empty];

/// An account as an earlier run found it.
pub(super) struct SavedAccount<'a> {
    pub user_id: &'a str,
    pub files: u64,
    pub bytes: u64,
    pub state: AccountState,
    pub left_alone: LeftAlone,
}

/// What earlier runs of the round saved.
#[derive(Debug)]
pub(super) struct Saved {
    accounts: Vec<u8>,
    /// The owner of each is the index of its account.
    pub records: Spool,
}

impl Saved {
    /// Opens the file of a round that started at `started_at`; the error says why it is of no use.
    pub async fn open(place: &RoundFile, started_at: Timestamp) -> Result<Self, String> {
        let place = place.clone();
        spawn_blocking(move || Self::read(&place, started_at))
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
    }

    fn read(place: &RoundFile, started_at: Timestamp) -> Result<Self, String> {
        let path = place.path.display();
        let mut file = open_regular(&place.path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("{path}, which earlier runs wrote, is missing"),
            _ => format!("{path} cannot be opened ({error})"),
        })?;
        let damaged = |error: &io::Error| format!("{path} is damaged ({error})");
        let (header, start) = read_header(&mut file).map_err(|error| damaged(&error))?;
        if header.format != FORMAT {
            return Err(format!("{path} was written by another version of microglia"));
        }
        let written_at = started_at.timestamp_millis();
        if header.definition != place.definition || header.started_at_ms != written_at {
            return Err(format!("{path} belongs to another round"));
        }
        Self::checked(file, &header, start).map_err(|error| damaged(&error))
    }

    fn checked(file: File, header: &Header, start: u64) -> io::Result<Self> {
        let lengths =
            start.checked_add(header.accounts).zip(header.records.checked_add(CRC_LENGTH));
        let length = lengths.and_then(|(accounts, records)| accounts.checked_add(records));
        let all = file.metadata()?.len();
        if length != Some(all) {
            return Err(io::Error::other(format!("{all} bytes")));
        }
        let (mut crc, mut piece, mut position) = (CRC.digest(), vec![0; PIECE], 0);
        let end = all - CRC_LENGTH;
        while position < end {
            let length = usize::try_from(end - position).unwrap_or(PIECE).min(PIECE);
            let piece = piece.get_mut(..length).unwrap_or_default();
            file.read_exact_at(piece, position)?;
            crc.update(piece);
            position += length as u64;
        }
        let mut written = 0_u64.to_le_bytes();
        file.read_exact_at(&mut written, end)?;
        if written != crc.finalize().to_le_bytes() {
            return Err(io::Error::other("wrong checksum"));
        }
        let mut accounts = vec![0; usize::try_from(header.accounts).map_err(io::Error::other)?];
        file.read_exact_at(&mut accounts, start)?;
        let records = Spool::of_file(file, start + header.accounts, header.records);
        Ok(Self { accounts, records })
    }

    /// The accounts in the order of their indices.
    pub fn accounts(&self) -> impl Iterator<Item = SavedAccount<'_>> {
        let mut rest = self.accounts.as_slice();
        std::iter::from_fn(move || {
            let (account, after) = decode(rest)?;
            rest = after;
            Some(account)
        })
    }
}

/// Replaces the file with what all runs of the round have read so far.
pub(super) async fn write(
    place: &RoundFile,
    started_at: Timestamp,
    accounts: impl Iterator<Item = (&MediaOwner, AccountState, LeftAlone)>,
    records: &Spool,
) -> io::Result<()> {
    let mut encoded = Vec::new();
    for (account, state, left_alone) in accounts {
        encode(account, state, left_alone, &mut encoded);
    }
    let header = Header {
        format: FORMAT.to_owned(),
        definition: place.definition.clone(),
        started_at_ms: started_at.timestamp_millis(),
        accounts: encoded.len() as u64,
        records: records.length(),
    };
    let mut head = serde_json::to_vec(&header)?;
    head.push(b'\n');
    head.append(&mut encoded);
    let unfinished = place.unfinished();
    let written = async {
        let file = create(&unfinished)?;
        write_checked(file, &head, records).await?;
        fs::rename(&unfinished, &place.path)
    };
    let written = written.await;
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    written
}

/// Checks that the file could be written at all.
pub(super) fn check_writable(place: &RoundFile) -> io::Result<()> {
    let unfinished = place.unfinished();
    let mut file = create(&unfinished)?;
    let written = file.write_all(FORMAT.as_bytes());
    fs::remove_file(unfinished)?;
    written
}

async fn write_checked(mut file: File, head: &[u8], records: &Spool) -> io::Result<()> {
    let mut crc = CRC.digest();
    file.write_all(head)?;
    crc.update(head);
    let mut position = 0;
    loop {
        let piece = records.piece(position)?;
        if piece.is_empty() {
            break;
        }
        file.write_all(&piece)?;
        crc.update(&piece);
        position += piece.len() as u64;
        yield_now().await;
    }
    file.write_all(&crc.finalize().to_le_bytes())?;
    spawn_blocking(move || file.sync_all()).await.map_err(io::Error::other)?
}

/// Creates the file in place of what a run that was killed left.
fn create(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // This follows no link.
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn open_regular(path: &Path) -> io::Result<File> {
    // Opening a FIFO would wait for its other end.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Returns the header and its length.
fn read_header(file: &mut File) -> io::Result<(Header, u64)> {
    file.seek(SeekFrom::Start(0))?;
    let mut line = Vec::new();
    BufReader::new(file.take(MAX_HEADER)).read_until(b'\n', &mut line)?;
    Ok((serde_json::from_slice(&line)?, line.len() as u64))
}

fn encode(account: &MediaOwner, state: AccountState, left_alone: LeftAlone, into: &mut Vec<u8>) {
    let user_id = account.user_id.as_deref().unwrap_or_default();
    into.push(match state {
        AccountState::Unread => 0,
        AccountState::Read => 1,
        AccountState::Unlisted => 2,
    });
    into.extend(account.media_count.to_le_bytes());
    into.extend(account.media_length.unwrap_or(0).to_le_bytes());
    into.extend(left_alone.map(u32::to_le_bytes).as_flattened());
    // Ids in responses are far shorter.
    into.extend(u32::try_from(user_id.len()).unwrap_or(u32::MAX).to_le_bytes());
    into.extend(user_id.as_bytes());
}

fn decode(bytes: &[u8]) -> Option<(SavedAccount<'_>, &[u8])> {
    let (state, rest) = bytes.split_first()?;
    let (files, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (left_alone, rest) = rest.split_first_chunk::<{ EXEMPT.len() * size_of::<u32>() }>()?;
    let (id_length, rest) = rest.split_first_chunk()?;
    let (user_id, rest) = rest.split_at_checked(u32::from_le_bytes(*id_length) as usize)?;
    let account = SavedAccount {
        user_id: std::str::from_utf8(user_id).ok()?,
        files: u64::from_le_bytes(*files),
        bytes: u64::from_le_bytes(*length),
        state: match state {
            1 => AccountState::Read,
            2 => AccountState::Unlisted,
            _ => AccountState::Unread,
        },
        left_alone: std::array::from_fn(|reason| {
            left_alone.as_chunks().0.get(reason).copied().map_or(0, u32::from_le_bytes)
        }),
    };
    Some((account, rest))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::file_spool::{Record, SpoolWriter};
    use super::*;

    fn place(directory: &tempfile::TempDir) -> RoundFile {
        RoundFile {
            path: directory.path().join("job.apply.round"),
            definition: "one".to_owned(),
            is_read_only: false,
        }
    }

    fn record(number: u32) -> Record {
        let id = format!("{number:024}").into();
        Record { used_ms: i64::from(number), bytes: 7, owner: number % 2, id }
    }

    async fn written(place: &RoundFile, records: u32) {
        let owner = |name: &str| MediaOwner {
            user_id: Some(name.to_owned()),
            media_count: 3,
            media_length: Some(21),
        };
        let owners = [owner("@a:x"), owner("@b:x")];
        let states = [(AccountState::Read, [1, 2, 3]), (AccountState::Unread, [0; 3])];
        let mut spool = SpoolWriter::new(Some(place.path.parent().unwrap()));
        for number in 0..records {
            spool.push(&record(number)).unwrap();
        }
        let spool = spool.finish().unwrap();
        let accounts = owners.iter().zip(states);
        let accounts = accounts.map(|(owner, (state, left_alone))| (owner, state, left_alone));
        write(place, Timestamp::default(), accounts, &spool).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_written_is_read_again_and_only_its_owner_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory);
        for count in [0, 3, 50_000] {
            written(&place, count).await;
            let saved = Saved::open(&place, Timestamp::default()).await.unwrap();
            let accounts: Vec<_> = saved
                .accounts()
                .map(|SavedAccount { user_id, files, bytes, state, left_alone }| {
                    (user_id, files, bytes, state, left_alone)
                })
                .collect();
            let expected = [
                ("@a:x", 3, 21, AccountState::Read, [1, 2, 3]),
                ("@b:x", 3, 21, AccountState::Unread, [0; 3]),
            ];
            assert_eq!(accounts, expected);
            let mut next = 0;
            saved
                .records
                .scan(|found| {
                    assert_eq!(found, record(next));
                    next += 1;
                })
                .unwrap();
            assert_eq!(next, count);
        }
        let mode = fs::metadata(&place.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_file_that_is_of_no_use_is_named_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory);
        let reason = async |place: &RoundFile| {
            let reason = Saved::open(place, Timestamp::default()).await.unwrap_err();
            reason.replace(directory.path().to_str().unwrap(), "")
        };
        assert_eq!(reason(&place).await, "/job.apply.round, which earlier runs wrote, is missing");
        written(&place, 3).await;
        let bytes = fs::read(&place.path).unwrap();
        let other = RoundFile { definition: "two".to_owned(), ..place.clone() };
        assert_eq!(reason(&other).await, "/job.apply.round belongs to another round");

        fs::write(&place.path, &bytes[..bytes.len() - 9]).unwrap();
        let short = format!("/job.apply.round is damaged ({} bytes)", bytes.len() - 9);
        assert_eq!(reason(&place).await, short);
        let mut flipped = bytes.clone();
        flipped[bytes.len() - 20] ^= 1;
        fs::write(&place.path, flipped).unwrap();
        assert_eq!(reason(&place).await, "/job.apply.round is damaged (wrong checksum)");
        let newer = String::from_utf8_lossy(&bytes).replacen("round 2", "round 3", 1);
        fs::write(&place.path, newer).unwrap();
        assert_eq!(
            reason(&place).await,
            "/job.apply.round was written by another version of microglia"
        );
        fs::write(&place.path, [b'x'; 9000]).unwrap();
        assert!(reason(&place).await.starts_with("/job.apply.round is damaged (expected value"));

        let target = directory.path().join("target");
        fs::write(&target, &bytes).unwrap();
        fs::remove_file(&place.path).unwrap();
        symlink(&target, &place.path).unwrap();
        assert!(reason(&place).await.starts_with("/job.apply.round cannot be opened (Too many"));
        written(&place, 1).await;
        assert_eq!(fs::read(&target).unwrap(), bytes, "the link was followed");
    }

    #[tokio::test]
    async fn a_link_where_a_killed_run_left_its_file_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let place = place(&directory);
        let target = directory.path().join("target");
        fs::write(&target, "precious").unwrap();
        symlink(&target, place.unfinished()).unwrap();
        check_writable(&place).unwrap();
        symlink(&target, place.unfinished()).unwrap();
        written(&place, 1).await;
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        fs::create_dir(place.unfinished()).unwrap();
        let error = check_writable(&place).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
