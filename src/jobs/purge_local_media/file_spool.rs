//! The files that a media purge found, as records in a temporary file: there may be ten million.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Records are written and scanned in pieces of this size.
const BUFFER: usize = 1 << 20;
/// Records begin at multiples of this, so that 32 bits can name one among 32 GiB.
const ALIGNMENT: usize = 8;
/// Last use, size, owner and length of the id.
const HEAD: usize = 8 + 8 + 4 + 2;
/// No record takes fewer bytes: Synapse's own ids have 24 characters, and none is empty.
pub(super) const SHORTEST: usize = (HEAD + 1).next_multiple_of(ALIGNMENT);
/// Holds any record but those of unusually long ids: Synapse's own have 24 characters.
const USUAL: usize = 64;
const MAX_ID: usize = 1024;

/// A file that Synapse will delete unless it is an avatar, which the list does not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Milliseconds since 1970.
    pub used_ms: i64,
    pub bytes: u64,
    /// Its index in the list of owners.
    pub owner: u32,
    pub id: Box<str>,
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position(u32);

/// Records that are being written: to memory up to [`BUFFER`] bytes, and without a directory for more.
#[derive(Debug)]
pub(super) struct SpoolWriter<'a> {
    directory: Option<&'a Path>,
    buffer: Vec<u8>,
    file: Option<File>,
    written: u64,
}

/// Records that can be read in any order.
#[derive(Debug)]
pub(super) struct Spool(Storage);

#[derive(Debug)]
enum Storage {
    Memory(Vec<u8>),
    File { file: File, start: u64, length: u64 },
}

impl<'a> SpoolWriter<'a> {
    /// The file has no name in `directory`, and is gone when the process ends.
    pub(super) fn new(directory: Option<&'a Path>) -> Self {
        Self { directory, buffer: Vec::new(), file: None, written: 0 }
    }

    pub(super) fn push(&mut self, record: &Record) -> io::Result<Position> {
        let id = record.id.as_bytes();
        let length = u16::try_from(id.len())
            .ok()
            .filter(|_| id.len() <= MAX_ID)
            .ok_or_else(|| io::Error::other("the id of a file is too long"))?;
        let start = (self.written + self.buffer.len() as u64) / ALIGNMENT as u64;
        let position = u32::try_from(start).map_err(|_| io::Error::other("too many files"))?;
        self.buffer.extend(record.used_ms.to_le_bytes());
        self.buffer.extend(record.bytes.to_le_bytes());
        self.buffer.extend(record.owner.to_le_bytes());
        self.buffer.extend(length.to_le_bytes());
        self.buffer.extend(id);
        self.buffer.resize(self.buffer.len().next_multiple_of(ALIGNMENT), 0);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(Position(position))
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(directory) = self.directory else { return Ok(()) };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(directory)?),
        };
        file.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<Spool> {
        if self.file.is_some() {
            self.flush()?;
        }
        Ok(Spool(match self.file {
            Some(file) => Storage::File { file, start: 0, length: self.written },
            None => Storage::Memory(self.buffer),
        }))
    }
}

impl Spool {
    pub(super) fn read(&self, position: Position) -> io::Result<Record> {
        let start = u64::from(position.0) * ALIGNMENT as u64;
        let mut bytes = [0; USUAL];
        let available = self.read_at(start, &mut bytes)?;
        let start_of_record = bytes.get(..available).unwrap_or_default();
        if let Some((record, _)) = decode(start_of_record) {
            return Ok(record);
        }
        let mut bytes = vec![0; (HEAD + MAX_ID).next_multiple_of(ALIGNMENT)];
        let available = self.read_at(start, &mut bytes)?;
        let record = bytes.get(..available).and_then(decode);
        record.map(|(record, _)| record).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// The records in a part of a file, which are in order from its beginning.
    pub(super) fn of_file(file: File, start: u64, length: u64) -> Self {
        Self(Storage::File { file, start, length })
    }

    /// In bytes.
    pub(super) fn length(&self) -> u64 {
        match &self.0 {
            Storage::Memory(data) => data.len() as u64,
            Storage::File { length, .. } => *length,
        }
    }

    /// Calls `visit` with every record.
    pub(super) fn scan(&self, mut visit: impl FnMut(Record)) -> io::Result<()> {
        let mut next = Some(0);
        while let Some(start) = next {
            next = self.scan_piece(start, |_, record| {
                visit(record);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Calls `visit` with the records of one piece, and returns where the next one starts.
    pub(super) fn scan_piece(
        &self,
        start: u64,
        mut visit: impl FnMut(Position, Record) -> io::Result<()>,
    ) -> io::Result<Option<u64>> {
        let mut buffer = vec![0; BUFFER];
        let available = self.read_at(start, &mut buffer)?;
        let mut rest = buffer.get(..available).unwrap_or_default();
        let mut position = start;
        while let Some((record, length)) = decode(rest) {
            let number = u32::try_from(position / ALIGNMENT as u64).map_err(io::Error::other)?;
            visit(Position(number), record)?;
            position += length as u64;
            rest = rest.get(length..).unwrap_or_default();
        }
        match position == start {
            true if available > 0 => Err(io::ErrorKind::InvalidData.into()),
            true => Ok(None),
            false => Ok(Some(position)),
        }
    }

    /// Returns the bytes of the piece that starts there; none at the end.
    pub(super) fn piece(&self, start: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; BUFFER];
        let available = self.read_at(start, &mut bytes)?;
        bytes.truncate(available);
        Ok(bytes)
    }

    /// Fills the buffer as far as there is data, and returns how far.
    fn read_at(&self, position: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.0 {
            Storage::Memory(data) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX);
                let rest = data.get(start..).unwrap_or_default();
                let length = rest.len().min(buffer.len());
                for (to, from) in buffer.iter_mut().zip(rest) {
                    *to = *from;
                }
                Ok(length)
            }
            Storage::File { file, start, length } => {
                let rest = usize::try_from(length.saturating_sub(position)).unwrap_or(usize::MAX);
                let length = rest.min(buffer.len());
                let buffer = buffer.get_mut(..length).unwrap_or_default();
                file.read_exact_at(buffer, start + position)?;
                Ok(length)
            }
        }
    }
}

/// Returns the record at the beginning and its length with padding; `None` if it is not complete.
fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let (used_ms, rest) = bytes.split_first_chunk()?;
    let (size, rest) = rest.split_first_chunk()?;
    let (owner, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::from(u16::from_le_bytes(*length));
    let id = std::str::from_utf8(rest.get(..length)?).ok()?;
    let record = Record {
        used_ms: i64::from_le_bytes(*used_ms),
        bytes: u64::from_le_bytes(*size),
        owner: u32::from_le_bytes(*owner),
        id: id.into(),
    };
    let padded = (HEAD + length).next_multiple_of(ALIGNMENT);
    (padded <= bytes.len()).then_some((record, padded))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32) -> Record {
        // Most ids have 24 characters, some far more.
        let length = if number % 100 == 7 { 1024 } else { 24 };
        Record {
            used_ms: -i64::from(number),
            bytes: u64::from(number) << 30,
            owner: number,
            id: format!("{number:0length$}").into(),
        }
    }

    fn written(directory: Option<&Path>, count: u32) -> (Spool, Vec<Position>) {
        let mut writer = SpoolWriter::new(directory);
        let positions = (0..count).map(|number| writer.push(&record(number)).unwrap()).collect();
        (writer.finish().unwrap(), positions)
    }

    #[test]
    fn records_are_read_in_any_order_from_memory_and_from_a_file_without_a_name() {
        let directory = tempfile::tempdir().unwrap();
        for (place, count) in [
            (None, 300),
            (None, 50_000),
            (Some(directory.path()), 300),
            (Some(directory.path()), 50_000),
        ] {
            let (spool, positions) = written(place, count);
            let in_file = matches!(spool.0, Storage::File { .. });
            assert_eq!(in_file, place.is_some() && count == 50_000);
            for number in (0..count).rev() {
                assert_eq!(spool.read(positions[number as usize]).unwrap(), record(number));
            }
            let mut next = 0;
            spool
                .scan(|found| {
                    assert_eq!(found, record(next));
                    next += 1;
                })
                .unwrap();
            assert_eq!(next, count);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_usual_record_takes_48_bytes() {
        let (spool, _) = written(None, 2);
        let Storage::Memory(data) = spool.0 else { panic!("{spool:?}") };
        assert_eq!(data.len(), 96);
    }

    #[test]
    fn a_directory_that_cannot_be_written_to_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        let mut writer = SpoolWriter::new(Some(&gone));
        let error = (0..).find_map(|number| writer.push(&record(number)).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
