//! The log: two files that are written in turn, one frame per group of writes. A write is durable once its frame is.
//! What a file holds goes into the database from time to time; then the file is written again from its beginning, in
//! place, which costs a disk the least.
//!
//! A frame is a head of 32 bytes (magic number, length, epoch, revision of the first change, number of changes,
//! CRC-32 of all else) and the changes; it begins at a sector, so that no write touches an earlier one. The epoch goes up with each change of files; what is left of earlier epochs
//! in a file ends it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::disk::{Row, damaged};
use super::index::Version;
use crate::Error;

const MAGIC: u32 = 0x5048_4c47;
const HEAD: usize = 32;
const ROW_HEAD: usize = 32;
/// Frames begin at multiples of this.
const SECTOR: usize = 512;
/// Files grow by this, filled with zeroes, so that most writes change only contents and no metadata.
const GROWTH: usize = 1 << 20;

/// How files are written; tests put faults here.
pub(super) trait Io: Send + Sync {
    /// Writes all of `bytes` at `offset`.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes what was written durable.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// Writes files as they are.
pub(super) struct RealIo;

impl Io for RealIo {
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

/// Why an append failed.
pub(super) enum Failure {
    /// Nothing is lost; it may work later.
    Write(io::Error),
    /// What is on the disk is unknown.
    Sync(io::Error),
}

/// See the module.
pub(super) struct Log {
    io: Box<dyn Io>,
    files: [File; 2],
    /// How far each file is filled with zeroes or frames.
    sizes: [u64; 2],
    epoch: u64,
    offset: u64,
}

impl Log {
    /// Opens the log in `dir`; also gives what it holds, oldest first. The caller makes that durable elsewhere before
    /// it appends.
    pub(super) fn open(dir: &Path, io: Box<dyn Io>) -> Result<(Log, Vec<(Row, Bytes)>), Error> {
        let paths = [dir.join("log.0"), dir.join("log.1")];
        let open = |path: &PathBuf| {
            let file =
                OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(path);
            let file = file.map_err(|e| Error::Broken(format!("{}: {e}", path.display())))?;
            let bytes = std::fs::read(path).map_err(|e| Error::Broken(format!("{}: {e}", path.display())))?;
            Ok::<_, Error>((file, bytes))
        };
        let [(a, a_bytes), (b, b_bytes)] = [open(&paths[0])?, open(&paths[1])?];
        let sizes = [a_bytes.len() as u64, b_bytes.len() as u64];
        let mut parts = [read(Bytes::from(a_bytes), &paths[0])?, read(Bytes::from(b_bytes), &paths[1])?];
        for (i, path) in paths.iter().enumerate() {
            // A file whose first frame is unfinished holds frames of two epochs ago: the other file is newer.
            if parts[i].headless > parts[1 - i].epoch {
                return Err(damaged(path, "the first frame"));
            }
        }
        parts.sort_by_key(|part| part.epoch);
        let epoch = parts[1].epoch + 1;
        let rows = parts.into_iter().flat_map(|part| part.rows).collect();
        Ok((Log { io, files: [a, b], sizes, epoch, offset: 0 }, rows))
    }

    /// How many bytes the file in use holds.
    pub(super) fn len(&self) -> u64 {
        self.offset
    }

    /// Goes on in the other file, whose content must no longer be needed.
    pub(super) fn switch(&mut self) {
        self.epoch += 1;
        self.offset = 0;
    }

    /// Appends changes; they are durable when this returns `Ok`.
    pub(super) fn append(&mut self, rows: &[(Row, Bytes)]) -> Result<(), Failure> {
        let Some((first, _)) = rows.first() else { return Ok(()) };
        let frame = encode(self.epoch, first.version.revision, rows);
        let i = (self.epoch % 2) as usize;
        let end = self.offset + frame.len() as u64;
        if end > self.sizes[i] {
            let zeroes = vec![0; GROWTH.max((end - self.sizes[i]) as usize)];
            self.io.write(&self.files[i], &zeroes, self.sizes[i]).map_err(Failure::Write)?;
            self.sizes[i] += zeroes.len() as u64;
        }
        self.io.write(&self.files[i], &frame, self.offset).map_err(Failure::Write)?;
        self.io.sync(&self.files[i]).map_err(Failure::Sync)?;
        self.offset = end.next_multiple_of(SECTOR as u64);
        Ok(())
    }
}

fn encode(epoch: u64, first: u64, rows: &[(Row, Bytes)]) -> BytesMut {
    let size: usize = rows.iter().map(|(row, value)| ROW_HEAD + row.key.len() + value.len()).sum();
    let mut out = BytesMut::with_capacity(HEAD + size);
    out.put_u32_le(MAGIC);
    out.put_u32_le(size as u32);
    out.put_u64_le(epoch);
    out.put_u64_le(first);
    out.put_u32_le(rows.len() as u32);
    out.put_u32_le(0);
    for (row, value) in rows {
        out.put_u64_le(row.version.create);
        out.put_u64_le(row.previous);
        out.put_u64_le(row.expires);
        out.put_u32_le(row.key.len() as u32);
        out.put_u32_le(value.len() as u32);
        out.put_slice(&row.key);
        out.put_slice(value);
    }
    let crc = crc32fast::hash(&out);
    out[HEAD - 4..HEAD].copy_from_slice(&crc.to_le_bytes());
    out
}

/// One frame: its epoch, its length, and its changes.
type Frame = (u64, usize, Vec<(Row, Bytes)>);

/// The frame at the beginning of `bytes`, if there is a whole one.
fn decode(bytes: &Bytes) -> Option<Frame> {
    let mut head = bytes.get(..HEAD)?;
    if head.get_u32_le() != MAGIC {
        return None;
    }
    let size = head.get_u32_le() as usize;
    let (epoch, first, count, crc) =
        (head.get_u64_le(), head.get_u64_le(), head.get_u32_le(), head.get_u32_le());
    let end = HEAD.checked_add(size).filter(|end| *end <= bytes.len())?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..HEAD - 4]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[HEAD..end]);
    if hasher.finalize() != crc {
        return None;
    }
    let mut body = bytes.slice(HEAD..end);
    let mut rows = Vec::with_capacity(count as usize);
    for revision in first..first + u64::from(count) {
        if body.len() < ROW_HEAD {
            return None;
        }
        let (create, previous, expires) = (body.get_u64_le(), body.get_u64_le(), body.get_u64_le());
        let (key, value) = (body.get_u32_le() as usize, body.get_u32_le() as usize);
        if body.len() < key + value {
            return None;
        }
        let key = body.split_to(key);
        let row = Row { version: Version { revision, create }, previous, expires, key };
        rows.push((row, body.split_to(value)));
    }
    Some((epoch, end, rows))
}

/// What a file holds.
struct Part {
    /// 0 where it holds nothing.
    epoch: u64,
    rows: Vec<(Row, Bytes)>,
    /// The epoch of later frames where there is no first one, else 0.
    headless: u64,
}

fn read(bytes: Bytes, path: &Path) -> Result<Part, Error> {
    let mut part = Part { epoch: 0, rows: Vec::new(), headless: 0 };
    let mut at = 0;
    while let Some((epoch, len, mut rows)) = bytes.get(at..).and_then(|_| decode(&bytes.slice(at..))) {
        if at > 0 && epoch != part.epoch {
            return Ok(part);
        }
        part.epoch = epoch;
        part.rows.append(&mut rows);
        at = (at + len).next_multiple_of(SECTOR);
    }
    // The last frame may be unfinished. But a whole one of the same epoch after it means that it was finished once.
    let newest = part.rows.last().map_or(0, |(row, _)| row.version.revision);
    for i in (at + SECTOR..bytes.len()).step_by(SECTOR) {
        let head = &bytes[i..];
        let has_head = head.starts_with(&MAGIC.to_le_bytes()) && head.len() >= HEAD;
        if !has_head || (at > 0 && head[8..16] != part.epoch.to_le_bytes()) {
            continue;
        }
        let Some((epoch, _, rows)) = decode(&bytes.slice(i..)) else { continue };
        if at == 0 {
            part.headless = part.headless.max(epoch);
        } else if rows.last().is_some_and(|(row, _)| row.version.revision > newest) {
            return Err(damaged(path, &format!("the frame at byte {at}")));
        }
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(revision: u64, key: &str, value: &str) -> (Row, Bytes) {
        let version = Version { revision, create: revision };
        (Row { version, previous: 0, expires: 7, key: key.to_string().into() }, value.to_string().into())
    }

    fn revisions(rows: &[(Row, Bytes)]) -> Vec<u64> {
        rows.iter().map(|(row, _)| row.version.revision).collect()
    }

    fn append(log: &mut Log, rows: &[(Row, Bytes)]) {
        assert!(log.append(rows).is_ok());
    }

    #[test]
    fn what_was_appended_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, rows) = Log::open(dir.path(), Box::new(RealIo)).unwrap();
        assert!(rows.is_empty());
        append(&mut log, &[row(2, "a", "1"), row(3, "b", "")]);
        append(&mut log, &[row(4, "a", &"x".repeat(2 << 20))]);
        log.switch();
        append(&mut log, &[row(5, "c", "3")]);
        let (mut log, rows) = Log::open(dir.path(), Box::new(RealIo)).unwrap();
        assert_eq!(revisions(&rows), [2, 3, 4, 5]);
        assert_eq!(rows[0], row(2, "a", "1"));
        // The older file is written again from its beginning; what is left of it is not read.
        append(&mut log, &[row(6, "d", "4")]);
        let (_, rows) = Log::open(dir.path(), Box::new(RealIo)).unwrap();
        assert_eq!(revisions(&rows), [5, 6]);
    }

    #[test]
    fn an_unfinished_end_is_no_damage_and_a_hole_is() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = Log::open(dir.path(), Box::new(RealIo)).unwrap();
        for revision in 2..5 {
            append(&mut log, &[row(revision, "key", "value")]);
        }
        let path = dir.path().join("log.1");
        let good = std::fs::read(&path).unwrap();
        let frame = SECTOR;
        let open = |byte: usize| {
            let mut bytes = good.clone();
            bytes[byte] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            Log::open(dir.path(), Box::new(RealIo)).map(|(_, rows)| revisions(&rows))
        };
        assert_eq!(open(2 * frame + 40).unwrap(), [2, 3]);
        let error = open(frame + 40).unwrap_err().to_string();
        assert!(error.contains("log.1") && error.contains("damaged"), "{error}");
        assert!(open(5).is_err());
        // The second time round, the first frame is cut short by a crash: the frames after it are old.
        std::fs::write(&path, &good).unwrap();
        let (mut log, _) = Log::open(dir.path(), Box::new(RealIo)).unwrap();
        append(&mut log, &[row(5, "key", "value")]);
        log.switch();
        let mut torn = good.clone();
        torn[..40].copy_from_slice(&encode(3, 6, &[row(6, "key", "other")])[..40]);
        std::fs::write(&path, torn).unwrap();
        assert_eq!(revisions(&Log::open(dir.path(), Box::new(RealIo)).unwrap().1), [5]);
        std::fs::remove_file(dir.path().join("log.0")).unwrap();
        std::fs::write(&path, &good[..2 * frame + 5]).unwrap();
        assert_eq!(revisions(&Log::open(dir.path(), Box::new(RealIo)).unwrap().1), [2, 3]);
    }
}
