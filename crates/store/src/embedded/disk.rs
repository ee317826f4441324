//! The database: three redb tables in one file. It gets what the log holds from time to time, so it lags behind.
//!
//! `changes` maps a revision to what happened at it (see [`Row`]), `values` a revision to the value that was written,
//! `meta` holds the format's number and the compacted revision. The newest change is never compacted away, so the last
//! key of `changes` is the store's revision.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition, TableError,
};

use super::closed;
use super::index::{Index, Version};
use crate::Error;

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const CHANGES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("changes");
const VALUES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("values");

const FORMAT: u64 = 1;
/// The database's name in the store's folder.
pub(super) const FILE: &str = "store.redb";

/// Opens the database file; tests put faults between redb and the file here.
pub(super) type Opener = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

/// An opener that keeps up to `cache` bytes of the file in memory.
pub(super) fn file_opener(cache: usize) -> Opener {
    Box::new(move |path| Database::builder().set_cache_size(cache).create(path))
}

/// One change as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) version: Version,
    /// The revision at which the key was written before; 0 where it did not exist.
    pub(super) previous: u64,
    /// When the key deletes itself, in milliseconds since 1970; 0 for never.
    pub(super) expires: u64,
    pub(super) key: Bytes,
}

impl Row {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(24 + self.key.len());
        for n in [self.version.create, self.previous, self.expires] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&self.key);
        out
    }

    fn decode(revision: u64, bytes: &[u8]) -> Option<Row> {
        let number = |i: usize| Some(u64::from_le_bytes(bytes.get(i..i + 8)?.try_into().ok()?));
        Some(Row {
            version: Version { revision, create: number(0)? },
            previous: number(8)?,
            expires: number(16)?,
            key: Bytes::copy_from_slice(bytes.get(24..)?),
        })
    }
}

/// What one transaction writes, from the log and what compaction leaves.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// New changes with their values, in the order of their revisions.
    pub(super) rows: Vec<(Row, Bytes)>,
    /// Revisions to forget.
    pub(super) garbage: Vec<u64>,
    /// The compacted revision, where it changed.
    pub(super) compacted: Option<u64>,
}

/// What was in the file at the start.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) index: Index,
    /// Keys that were given a time to live: revision, key, and when it ends.
    pub(super) expiring: Vec<(u64, Bytes, u64)>,
}

/// See the module.
pub(super) struct Disk {
    path: PathBuf,
    opener: Opener,
    /// Not there where the store is closed, or where the file could not be opened again yet.
    db: RwLock<Option<Database>>,
    closed: AtomicBool,
}

/// A view of the file that does not change. It must not be held over an `await`.
pub(super) struct DiskSnapshot<'a> {
    changes: ReadOnlyTable<u64, &'static [u8]>,
    values: ReadOnlyTable<u64, &'static [u8]>,
    disk: &'a Disk,
    // The file can be opened anew only when no snapshot is left, so the guard goes last.
    _guard: RwLockReadGuard<'a, Option<Database>>,
}

impl Disk {
    /// Opens or makes the store's file in `dir`.
    pub(super) fn open(dir: &Path, opener: Opener) -> Result<(Disk, Loaded), Error> {
        let path = dir.join(FILE);
        let io = |e: std::io::Error| Error::Broken(format!("{}: {e}", path.display()));
        // The store holds secrets.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
        OpenOptions::new().create(true).append(true).mode(0o600).open(&path).map_err(io)?;
        File::open(dir).and_then(|d| d.sync_all()).map_err(io)?;
        let db = open_database(&opener, &path)?;
        let disk = Disk { path, opener, db: RwLock::new(Some(db)), closed: AtomicBool::new(false) };
        let loaded = disk.guarded(|| disk.load())?;
        Ok((disk, loaded))
    }

    fn load(&self) -> Result<Loaded, Error> {
        let compacted = match self.meta()? {
            Some(compacted) => compacted,
            None => {
                self.create_tables()?;
                0
            }
        };
        let mut index = Index::new(compacted);
        let mut expiring = Vec::new();
        let snapshot = self.snapshot()?;
        for entry in snapshot.changes.range(0u64..).map_err(|e| self.error(e))? {
            let (revision, bytes) = entry.map_err(|e| self.error(e))?;
            let row = self.row(revision.value(), bytes.value())?;
            if row.expires != 0 {
                expiring.push((row.version.revision, row.key.clone(), row.expires));
            }
            index.apply(&row.key, row.version);
        }
        Ok(Loaded { index, expiring })
    }

    /// The compacted revision; `None` where the file is new.
    fn meta(&self) -> Result<Option<u64>, Error> {
        let guard = self.db.read();
        let tx = guard.as_ref().ok_or_else(closed)?.begin_read().map_err(|e| self.error(e))?;
        let meta = match tx.open_table(META) {
            Ok(meta) => meta,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(self.error(e)),
        };
        let number =
            |name| Ok::<_, Error>(meta.get(name).map_err(|e| self.error(e))?.map_or(0, |v| v.value()));
        match number("format")? {
            FORMAT => number("compacted").map(Some),
            n => {
                Err(Error::Broken(format!("{}: unknown format {n}, expected {FORMAT}", self.path.display())))
            }
        }
    }

    fn create_tables(&self) -> Result<(), Error> {
        let guard = self.db.read();
        let tx = guard.as_ref().ok_or_else(closed)?.begin_write().map_err(|e| self.error(e))?;
        tx.open_table(META)
            .map_err(|e| self.error(e))?
            .insert("format", FORMAT)
            .map_err(|e| self.error(e))?;
        tx.open_table(CHANGES).map_err(|e| self.error(e))?;
        tx.open_table(VALUES).map_err(|e| self.error(e))?;
        tx.commit().map_err(|e| self.error(e))
    }

    fn row(&self, revision: u64, bytes: &[u8]) -> Result<Row, Error> {
        Row::decode(revision, bytes).ok_or_else(|| {
            Error::Broken(format!("{}: the change of revision {revision} is damaged", self.path.display()))
        })
    }

    /// The database, opened again where an error closed it.
    fn database(&self) -> Result<RwLockReadGuard<'_, Option<Database>>, Error> {
        let guard = self.db.read();
        if guard.is_some() || self.closed.load(Ordering::Acquire) {
            return Ok(guard);
        }
        drop(guard);
        self.reopen()?;
        Ok(self.db.read())
    }

    /// A view of what is durable now.
    pub(super) fn snapshot(&self) -> Result<DiskSnapshot<'_>, Error> {
        let guard = self.database()?;
        let tx = guard.as_ref().ok_or_else(closed)?.begin_read().map_err(|e| self.error(e))?;
        let changes = tx.open_table(CHANGES).map_err(|e| self.error(e))?;
        let values = tx.open_table(VALUES).map_err(|e| self.error(e))?;
        Ok(DiskSnapshot { changes, values, disk: self, _guard: guard })
    }

    /// Writes a batch; it is durable when this returns `Ok`. On an error it can be written again.
    pub(super) fn commit(&self, batch: &Batch) -> Result<(), Error> {
        let result = self.guarded(|| self.try_commit(batch));
        if result.is_err() {
            // redb refuses everything after a failed write until the file is opened again; reads must go on. Where
            // that fails, too, the next read tries again.
            if let Err(e) = self.reopen() {
                tracing::warn!("{e}");
            }
        }
        result
    }

    fn try_commit(&self, batch: &Batch) -> Result<(), Error> {
        let guard = self.database()?;
        let mut tx = guard.as_ref().ok_or_else(closed)?.begin_write().map_err(|e| self.error(e))?;
        // Costs a little more now, and spares the start after a crash a look at the whole file.
        tx.set_quick_repair(true);
        {
            let mut changes = tx.open_table(CHANGES).map_err(|e| self.error(e))?;
            let mut values = tx.open_table(VALUES).map_err(|e| self.error(e))?;
            for (row, value) in &batch.rows {
                let revision = row.version.revision;
                changes.insert(revision, row.encode().as_slice()).map_err(|e| self.error(e))?;
                if row.version.create != 0 {
                    values.insert(revision, &value[..]).map_err(|e| self.error(e))?;
                }
            }
            for revision in &batch.garbage {
                changes.remove(revision).map_err(|e| self.error(e))?;
                values.remove(revision).map_err(|e| self.error(e))?;
            }
        }
        if let Some(compacted) = batch.compacted {
            let mut meta = tx.open_table(META).map_err(|e| self.error(e))?;
            meta.insert("compacted", compacted).map_err(|e| self.error(e))?;
        }
        tx.commit().map_err(|e| self.error(e))
    }

    fn reopen(&self) -> Result<(), Error> {
        let mut db = self.db.write();
        // Only one handle of a file may exist, so the old one goes first.
        *db = None;
        if self.closed.load(Ordering::Acquire) {
            return Err(closed());
        }
        *db = Some(open_database(&self.opener, &self.path)?);
        Ok(())
    }

    /// Closes the file.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.db.write().take();
    }

    /// An error where the store was closed.
    pub(super) fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    /// redb panics on some kinds of damage; to us that is an error like any other.
    fn guarded<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(damaged(&self.path, "unexpected content")))
    }

    fn error(&self, e: impl Into<redb::Error>) -> Error {
        describe(&self.path, e.into())
    }
}

impl DiskSnapshot<'_> {
    /// What was written at a revision.
    pub(super) fn value(&self, revision: u64) -> Result<Option<Bytes>, Error> {
        let value = self.values.get(revision).map_err(|e| self.disk.error(e))?;
        Ok(value.map(|v| Bytes::copy_from_slice(v.value())))
    }

    /// Calls `f` for the values of revisions that lie close together, which is quicker than one by one.
    pub(super) fn scan(&self, revisions: &[u64], mut f: impl FnMut(u64, Bytes)) -> Result<(), Error> {
        let (Some(first), Some(last)) = (revisions.first(), revisions.last()) else { return Ok(()) };
        let mut wanted = revisions.iter().peekable();
        for entry in self.values.range(*first..=*last).map_err(|e| self.disk.error(e))? {
            let (revision, value) = entry.map_err(|e| self.disk.error(e))?;
            let revision = revision.value();
            while wanted.next_if(|w| **w < revision).is_some() {}
            if wanted.next_if(|w| **w == revision).is_some() {
                f(revision, Bytes::copy_from_slice(value.value()));
            }
        }
        Ok(())
    }

    /// The newest change in the file; 0 where there is none.
    pub(super) fn newest(&self) -> Result<u64, Error> {
        Ok(self.changes.last().map_err(|e| self.disk.error(e))?.map_or(0, |(revision, _)| revision.value()))
    }

    /// What happened from revision `from` up to and without `to`, oldest first.
    pub(super) fn rows(&self, from: u64, to: u64) -> Result<impl Iterator<Item = Result<Row, Error>>, Error> {
        let range = self.changes.range(from..to).map_err(|e| self.disk.error(e))?;
        Ok(range.map(|entry| {
            let (revision, bytes) = entry.map_err(|e| self.disk.error(e))?;
            self.disk.row(revision.value(), bytes.value())
        }))
    }
}

fn open_database(opener: &Opener, path: &Path) -> Result<Database, Error> {
    match catch_unwind(AssertUnwindSafe(|| opener(path))) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(DatabaseError::DatabaseAlreadyOpen)) => {
            Err(Error::Broken(format!("{} is in use by another process", path.display())))
        }
        Ok(Err(e)) => Err(describe(path, e.into())),
        Err(_) => Err(damaged(path, "unexpected content")),
    }
}

pub(super) fn damaged(path: &Path, how: &str) -> Error {
    Error::Broken(format!("{} is damaged: {how}", path.display()))
}

fn describe(path: &Path, e: redb::Error) -> Error {
    match e {
        redb::Error::Io(e) if matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
            Error::NoSpace(format!("{}: {e}", path.display()))
        }
        // Not a database at all, or one that was cut short.
        redb::Error::Io(e) if matches!(e.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) => {
            damaged(path, &e.to_string())
        }
        redb::Error::Corrupted(how) => damaged(path, &how),
        redb::Error::ValueTooLarge(_) => Error::TooLarge,
        e => Error::Broken(format!("{}: {e}", path.display())),
    }
}
