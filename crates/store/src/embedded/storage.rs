//! Log and database together: changes are durable in the log first and go into the database in larger groups. What is
//! in the log only is also in memory.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::disk::{Batch, Disk, DiskSnapshot, Opener, Row};
use super::index::Index;
use super::log::{Failure, Io, Log};
use crate::Error;

/// At this size a log file goes into the database.
const LOG_SIZE: u64 = 8 << 20;
/// How many compacted changes one transaction deletes.
const GARBAGE: usize = 5000;
/// Where one in so many values is wanted, all are read through.
const SPARSE: u64 = 4;
/// Pause after the database could not be written.
const RETRY: Duration = Duration::from_secs(1);
/// About how many bytes [`Snapshot::part`] gives at a time.
const PART: usize = 4 << 20;

/// Changes that are in one log file.
#[derive(Default)]
struct Segment(RwLock<BTreeMap<u64, (Row, Bytes)>>);

/// Segments that are not in the database yet.
#[derive(Default, Clone)]
struct Recent {
    current: Arc<Segment>,
    /// The one that is going into the database.
    frozen: Option<Arc<Segment>>,
    /// The newest revision before those of `current`.
    through: u64,
}

#[derive(Default)]
struct Leftover {
    /// Compacted changes that are still in the database.
    garbage: Vec<u64>,
    compacted: Option<u64>,
    retry: Option<Instant>,
}

/// See the module.
pub(super) struct Storage {
    disk: Disk,
    log: Mutex<Log>,
    recent: RwLock<Recent>,
    leftover: Mutex<Leftover>,
    /// Held by whoever writes the database.
    checkpointing: Mutex<()>,
    /// Why nothing can be written any more.
    failed: Mutex<Option<Error>>,
}

/// What was there at the start.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) index: Index,
    /// Keys with a time to live: revision, key, and when it ends.
    pub(super) expiring: Vec<(u64, Bytes, u64)>,
}

/// A view of what is durable. It must not be held over an `await`.
pub(super) struct Snapshot<'a> {
    // Taken before that of the database, so that what moves there in between is in both.
    recent: Recent,
    disk: DiskSnapshot<'a>,
}

impl Storage {
    /// Opens or makes the files in `dir`.
    pub(super) fn open(dir: &Path, opener: Opener, io: Box<dyn Io>) -> Result<(Storage, Opened), Error> {
        let (disk, mut loaded) = Disk::open(dir, opener)?;
        // The database is locked: from here on nobody else is at work in the folder.
        let (log, rows) = Log::open(dir, io)?;
        let mut batch = Batch::default();
        for (row, value) in rows {
            let (revision, newest) = (row.version.revision, loaded.index.revision());
            if revision <= newest {
                continue;
            }
            if revision != newest + 1 {
                let text = format!(
                    "{}: the changes of revisions {} to {} are missing",
                    dir.display(),
                    newest + 1,
                    revision - 1
                );
                return Err(Error::Broken(text));
            }
            if row.expires != 0 {
                // A copy: the key is a part of all that was read.
                loaded.expiring.push((revision, Bytes::copy_from_slice(&row.key), row.expires));
            }
            loaded.index.apply(&row.key, row.version);
            batch.rows.push((row, value));
        }
        if !batch.rows.is_empty() {
            disk.commit(&batch)?;
        }
        let (mut index, mut expiring) = (loaded.index, loaded.expiring);
        let compacted = index.compacted();
        let garbage = if compacted > 0 { index.compact(compacted) } else { Vec::new() };
        expiring.retain(|(revision, key, _)| index.latest(key).is_some_and(|(_, v)| v.revision == *revision));
        let storage = Storage {
            disk,
            log: Mutex::new(log),
            recent: RwLock::new(Recent { through: index.revision(), ..Recent::default() }),
            leftover: Mutex::new(Leftover { garbage, ..Leftover::default() }),
            checkpointing: Mutex::default(),
            failed: Mutex::default(),
        };
        Ok((storage, Opened { index, expiring }))
    }

    /// Makes changes durable. Where this returns an error, they have not happened.
    pub(super) fn append(&self, rows: &[(Row, Bytes)]) -> Result<(), Error> {
        self.health()?;
        let mut log = self.log.lock();
        match log.append(rows) {
            Ok(()) => {
                let recent = self.recent.read();
                let mut current = recent.current.0.write();
                for (row, value) in rows {
                    current.insert(row.version.revision, (row.clone(), value.clone()));
                }
                Ok(())
            }
            Err(Failure::Write(e)) if is_full(&e) => Err(Error::NoSpace(e.to_string())),
            // After a failed sync nobody can tell what is on the disk: it is safer to stop than to go on.
            Err(Failure::Write(e) | Failure::Sync(e)) => {
                let error = Error::Broken(format!("the store takes no more writes: {e}"));
                tracing::error!("{error}");
                *self.failed.lock() = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Takes in what compaction left to delete.
    pub(super) fn discard(&self, garbage: Vec<u64>, compacted: u64) {
        let mut leftover = self.leftover.lock();
        leftover.garbage.extend(garbage);
        leftover.compacted = Some(compacted);
    }

    /// Whether [`Storage::checkpoint`] has something to do.
    pub(super) fn wants_checkpoint(&self) -> bool {
        let leftover = self.leftover.lock();
        if leftover.retry.is_some_and(|at| Instant::now() < at) || self.checkpointing.is_locked() {
            return false;
        }
        let pending = !leftover.garbage.is_empty() || leftover.compacted.is_some();
        drop(leftover);
        // One lock at a time: whoever freezes a segment takes them in the other order.
        let pending = pending || {
            let recent = self.recent.read();
            recent.frozen.is_some()
        };
        pending || {
            let log = self.log.lock();
            log.len() >= LOG_SIZE
        }
    }

    /// Brings the database up to date. Blocks.
    pub(super) fn checkpoint(&self) -> Result<(), Error> {
        let _one = self.checkpointing.lock();
        loop {
            let (frozen, through) = self.freeze();
            let (garbage, compacted) = {
                let mut leftover = self.leftover.lock();
                // What is neither in the database nor about to be cannot be deleted there yet.
                let (mut now, later): (Vec<u64>, Vec<u64>) =
                    leftover.garbage.drain(..).partition(|r| *r <= through);
                leftover.garbage = later;
                leftover.garbage.extend(now.split_off(now.len().min(GARBAGE)));
                (now, leftover.compacted.take())
            };
            let rows: Vec<(Row, Bytes)> = frozen.0.read().values().cloned().collect();
            if rows.is_empty() && garbage.is_empty() && compacted.is_none() {
                self.recent.write().frozen = None;
                return Ok(());
            }
            let batch = Batch { rows, garbage, compacted };
            let result = self.disk.commit(&batch);
            let mut leftover = self.leftover.lock();
            match result {
                Ok(()) => {
                    self.recent.write().frozen = None;
                    leftover.retry = None;
                    if leftover.garbage.is_empty() {
                        return Ok(());
                    }
                }
                Err(e) => {
                    leftover.garbage.extend(batch.garbage);
                    leftover.compacted = leftover.compacted.or(batch.compacted);
                    leftover.retry = Some(Instant::now() + RETRY);
                    tracing::warn!("the database is not up to date: {e}");
                    return Err(e);
                }
            }
        }
    }

    /// Sets the changes so far aside and goes on in the other log file; unless those before are still set aside.
    fn freeze(&self) -> (Arc<Segment>, u64) {
        let mut log = self.log.lock();
        let mut recent = self.recent.write();
        if let Some(frozen) = &recent.frozen {
            return (frozen.clone(), recent.through);
        }
        let frozen = std::mem::take(&mut recent.current);
        let newest = frozen.0.read().last_key_value().map(|(revision, _)| *revision);
        if let Some(newest) = newest {
            log.switch();
            recent.through = newest;
        }
        recent.frozen = Some(frozen.clone());
        (frozen, recent.through)
    }

    /// A view of what is durable now.
    pub(super) fn snapshot(&self) -> Result<Snapshot<'_>, Error> {
        let recent = self.recent.read().clone();
        Ok(Snapshot { recent, disk: self.disk.snapshot()? })
    }

    /// Brings the database up to date and closes the files.
    pub(super) fn close(&self) {
        if self.health().is_ok() {
            let _ = self.checkpoint();
        }
        self.disk.close();
    }

    /// An error where the store was closed.
    pub(super) fn check_open(&self) -> Result<(), Error> {
        self.disk.check_open()
    }

    /// Why writing does not work, if so.
    pub(super) fn health(&self) -> Result<(), Error> {
        self.disk.check_open()?;
        self.failed.lock().clone().map_or(Ok(()), Err)
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl Recent {
    fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.frozen.iter().chain([&self.current])
    }

    fn find<T>(&self, revision: u64, f: impl Fn(&(Row, Bytes)) -> T) -> Option<T> {
        self.segments().find_map(|s| s.0.read().get(&revision).map(&f))
    }
}

impl Snapshot<'_> {
    /// What was written at a revision.
    pub(super) fn value(&self, revision: u64) -> Result<Option<Bytes>, Error> {
        match self.recent.find(revision, |(_, value)| value.clone()) {
            Some(value) => Ok(Some(value)),
            None => self.disk.value(revision),
        }
    }

    /// The values of many revisions, given in any order; those that are missing are left out.
    pub(super) fn values(&self, revisions: impl Iterator<Item = u64>) -> Result<HashMap<u64, Bytes>, Error> {
        let mut found = HashMap::new();
        let mut on_disk = Vec::new();
        for revision in revisions {
            match self.recent.find(revision, |(_, value)| value.clone()) {
                Some(value) => {
                    found.insert(revision, value);
                }
                None => on_disk.push(revision),
            }
        }
        on_disk.sort_unstable();
        let span = on_disk.last().zip(on_disk.first()).map_or(0, |(last, first)| last - first);
        if span < SPARSE * on_disk.len() as u64 {
            self.disk.scan(&on_disk, |revision, value| {
                found.insert(revision, value);
            })?;
        } else {
            for revision in on_disk {
                found.extend(self.disk.value(revision)?.map(|value| (revision, value)));
            }
        }
        Ok(found)
    }

    /// What happened from revision `from` up to and without `to`, oldest first.
    pub(super) fn rows(&self, from: u64, to: u64) -> Result<Vec<Row>, Error> {
        let mut rows: Vec<Row> = self.disk.rows(from, to)?.collect::<Result<_, _>>()?;
        let begin = from.max(self.disk.newest()? + 1);
        if begin < to {
            for segment in self.recent.segments() {
                rows.extend(segment.0.read().range(begin..to).map(|(_, (row, _))| row.clone()));
            }
        }
        Ok(rows)
    }

    /// What happened from revision `from` up to and with `through`, with the values, oldest first: as much of it as
    /// goes together, and nothing where there is no more.
    pub(super) fn part(&self, from: u64, through: u64) -> Result<Vec<(Row, Bytes)>, Error> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        let newest = self.disk.newest()?;
        for row in self.disk.rows(from, through + 1)? {
            let row = row?;
            let revision = row.version.revision;
            let value = match row.version.create {
                0 => Bytes::new(),
                _ => self
                    .disk
                    .value(revision)?
                    .ok_or_else(|| Error::Broken(format!("the value of revision {revision} is missing")))?,
            };
            bytes += row.key.len() + value.len();
            part.push((row, value));
            if bytes >= PART {
                return Ok(part);
            }
        }
        let from = from.max(newest + 1);
        if from <= through {
            for segment in self.recent.segments() {
                part.extend(segment.0.read().range(from..=through).map(|(_, change)| change.clone()));
            }
        }
        Ok(part)
    }
}
