//! Reading small files that may be anything: bounded in size, and pipes in time.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often to poll a pipe without data.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Reads a regular file or a FIFO of at most `max_bytes`; blocks the thread.
///
/// Fails with [`ErrorKind::FileTooLarge`] for a larger file, [`ErrorKind::TimedOut`] for a FIFO whose writer has not
/// closed it within `time_limit`, and [`ErrorKind::InvalidInput`] for a device. A stalled file system cannot be
/// interrupted: only the caller can stop waiting for that.
pub(crate) fn read_bounded(
    path: &Path,
    max_bytes: u64,
    time_limit: Duration,
) -> io::Result<Vec<u8>> {
    // Opening a FIFO without a writer would block otherwise. Regular files ignore the flag.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    let bytes = if kind.is_file() {
        let mut bytes = Vec::new();
        file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
        bytes
    } else if kind.is_fifo() {
        read_pipe(&mut file, max_bytes, time_limit)?
    } else if kind.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    } else {
        return Err(io::Error::new(ErrorKind::InvalidInput, "neither a regular file nor a FIFO"));
    };
    if bytes.len() as u64 > max_bytes {
        return Err(ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// Reads until the writer closes the pipe; without data the end of the file means that no writer has opened it yet.
fn read_pipe(pipe: &mut File, max_bytes: u64, time_limit: Duration) -> io::Result<Vec<u8>> {
    let start = Instant::now();
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    while bytes.len() as u64 <= max_bytes {
        match pipe.read(&mut chunk) {
            Ok(0) if !bytes.is_empty() => break,
            Ok(count @ 1..) => {
                bytes.extend_from_slice(&chunk[..count]);
                continue;
            }
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if start.elapsed() > time_limit {
            return Err(ErrorKind::TimedOut.into());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "four").unwrap();
        assert_eq!(read_bounded(&file, 4, SOON).unwrap(), b"four");
        assert_eq!(read_bounded(&file, 3, SOON).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert_eq!(read_bounded(dir.path(), 3, SOON).unwrap_err().kind(), ErrorKind::IsADirectory);
        let endless = read_bounded(Path::new("/dev/zero"), 3, SOON).unwrap_err();
        assert_eq!(endless.to_string(), "neither a regular file nor a FIFO");
    }

    #[test]
    fn a_fifo_is_read_until_its_writer_closes_it_and_not_waited_for_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read_bounded(&fifo, 9, SOON).unwrap_err().kind(), ErrorKind::TimedOut);
        let written = fifo.clone();
        let writer = std::thread::spawn(move || std::fs::write(written, "secret").unwrap());
        assert_eq!(read_bounded(&fifo, 9, Duration::from_mins(1)).unwrap(), b"secret");
        writer.join().unwrap();
    }
}
