//! What an embedded store holds, in one file, and back. (With etcd, `etcdctl snapshot` does this.)
//!
//! A snapshot is a line of JSON that says what follows, the store's files one after the other, and the SHA-256 of all
//! that. History comes with it: revisions and resource versions go on where they were. It is made from a copy of the
//! store at one moment: by who has the store open, over a socket in its folder, where somebody has.

mod serve;

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::serve::serve;
use crate::embedded::EmbeddedStore;

const FORMAT: &str = "pilothouse-snapshot-1";
const DATABASE: &str = "store.redb";
/// Where a copy is made, in the store's folder.
const COPY: &str = "snapshot.tmp";
/// A heading is short; a file that is none need not be read for one.
const HEADING: u64 = 64 << 10;
/// Where in a data directory a store can be: in its own folder, below that of an API server, below that of `up`.
const PLACES: [&str; 3] = ["", "store", "store/store"];

/// Why there is no snapshot, or no store out of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A file or folder is not what it should be.
    #[error("{path}: {what}")]
    Bad {
        /// Which.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// The store cannot be read.
    #[error("{0}")]
    Store(#[from] crate::Error),
    /// What has the store open could not do it.
    #[error("the server says: {0}")]
    Server(String),
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.display().to_string(), source }
}

fn bad(path: &Path, what: impl Into<String>) -> Error {
    Error::Bad { path: path.display().to_string(), what: what.into() }
}

/// The first line of a snapshot.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heading {
    format: String,
    /// Where in the data directory the store was.
    place: String,
    /// The store's revision.
    pub revision: u64,
    /// How many keys there are.
    pub keys: usize,
    files: Vec<Part>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Part {
    name: String,
    size: u64,
}

/// Writes what the store below `data_dir` holds into `file`, mode 0600, whole or not at all.
pub async fn save(file: &Path, data_dir: &Path) -> Result<Heading, Error> {
    let place = PLACES
        .into_iter()
        .find(|p| data_dir.join(p).join(DATABASE).exists())
        .ok_or_else(|| bad(data_dir, "there is no store in it"))?;
    let dir = data_dir.join(place);
    let partial = partial(file);
    let made = save_to(&partial, place, &dir).await.and_then(|()| {
        // What came over the socket may have ended early.
        let (heading, _) = read(&partial, skip)?;
        fs::rename(&partial, file).map_err(at(file))?;
        Ok(heading)
    });
    if made.is_err() {
        let _ = fs::remove_file(&partial);
    }
    made
}

fn partial(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

async fn save_to(partial: &Path, place: &str, dir: &Path) -> Result<(), Error> {
    let mut out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(partial)
        .map_err(at(partial))?;
    if !serve::ask(dir, place, &mut out)? {
        // Nobody has it open.
        let store = EmbeddedStore::open(dir)?;
        let written = write(&store, place, &mut out);
        store.close().await;
        written?;
    }
    out.sync_all().map_err(at(partial))
}

/// Writes a snapshot of a store into `out`. Blocks.
fn write(store: &EmbeddedStore, place: &str, out: &mut dyn Write) -> Result<(), Error> {
    let folder = store.dir().join(COPY);
    // One that was not finished may be there.
    let _ = fs::remove_dir_all(&folder);
    let written = write_copy(store, &folder, place, out);
    let _ = fs::remove_dir_all(&folder);
    written
}

fn write_copy(store: &EmbeddedStore, folder: &Path, place: &str, out: &mut dyn Write) -> Result<(), Error> {
    let copied = store.copy_to(folder)?;
    let mut file = File::open(&copied.file).map_err(at(&copied.file))?;
    let size = file.metadata().map_err(at(&copied.file))?.len();
    let heading = Heading {
        format: FORMAT.into(),
        place: place.into(),
        revision: copied.revision,
        keys: copied.keys,
        files: vec![Part { name: DATABASE.into(), size }],
    };
    let mut out = Hashing { inner: out, hash: Sha256::new() };
    let line = serde_json::to_string(&heading).map_err(|e| bad(folder, e.to_string()))?;
    let all = writeln!(out, "{line}").and_then(|()| io::copy(&mut file, &mut out)).and_then(|_| {
        let Hashing { inner, hash } = out;
        inner.write_all(&hash.finalize())?;
        inner.flush()
    });
    all.map_err(at(folder))
}

/// Reads a snapshot through and checks it; the parts are given to `each` as they come by. The heading, and eight digits
/// of the sum.
fn read(
    path: &Path,
    mut each: impl FnMut(&Part, &mut dyn Read) -> Result<(), Error>,
) -> Result<(Heading, String), Error> {
    let file = File::open(path).map_err(at(path))?;
    let mut input = BufReader::new(file);
    let mut line = Vec::new();
    input.by_ref().take(HEADING).read_until(b'\n', &mut line).map_err(at(path))?;
    let heading: Heading = serde_json::from_slice(&line)
        .ok()
        .filter(|h: &Heading| h.format == FORMAT)
        .ok_or_else(|| bad(path, "not a snapshot"))?;
    let mut hash = Sha256::new();
    hash.update(&line);
    for part in &heading.files {
        let mut reader = Reading { inner: input.by_ref().take(part.size), hash: &mut hash, seen: 0 };
        each(part, &mut reader)?;
        if reader.seen != part.size {
            return Err(bad(path, "it ends early"));
        }
    }
    let mut sum = Vec::new();
    input.read_to_end(&mut sum).map_err(at(path))?;
    let hash = hash.finalize();
    if sum.is_empty() {
        return Err(bad(path, "it ends early"));
    }
    if sum != hash[..] {
        return Err(bad(path, "its sum is wrong, it is damaged"));
    }
    Ok((heading, hash[..4].iter().map(|b| format!("{b:02x}")).collect()))
}

fn skip(_: &Part, from: &mut dyn Read) -> Result<(), Error> {
    io::copy(from, &mut io::sink()).map_err(at(Path::new("snapshot")))?;
    Ok(())
}

/// What a snapshot holds.
#[derive(Debug)]
pub struct Status {
    /// Its first line.
    pub heading: Heading,
    /// Eight digits of its sum.
    pub hash: String,
    /// The file's size in bytes.
    pub size: u64,
}

/// Reads a snapshot through and says what it holds.
pub fn status(path: &Path) -> Result<Status, Error> {
    let (heading, hash) = read(path, skip)?;
    let size = fs::metadata(path).map_err(at(path))?.len();
    Ok(Status { heading, hash, size })
}

/// Makes a store below `data_dir` out of a snapshot; there may be none yet. The heading, and where the store is.
pub fn restore(path: &Path, data_dir: &Path) -> Result<(Heading, PathBuf), Error> {
    // All of it is checked before anything is made.
    let (heading, _) = read(path, skip)?;
    if !PLACES.contains(&heading.place.as_str()) {
        return Err(bad(path, format!("unknown place {:?}", heading.place)));
    }
    // Without a trailing slash, where the place is the data directory itself.
    let dir: PathBuf = data_dir.join(&heading.place).components().collect();
    if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(bad(&dir, "it is not empty: move it away first"));
    }
    let partial = partial(&dir);
    let _ = fs::remove_dir_all(&partial);
    let written = restore_parts(path, &partial).and_then(|()| {
        let _ = fs::remove_dir(&dir);
        fs::rename(&partial, &dir).map_err(at(&dir))
    });
    if let Err(e) = written {
        let _ = fs::remove_dir_all(&partial);
        return Err(e);
    }
    Ok((heading, dir))
}

fn restore_parts(path: &Path, partial: &Path) -> Result<(), Error> {
    fs::create_dir_all(partial).map_err(at(partial))?;
    read(path, |part, from| {
        // Snapshots of earlier releases also have the store's logs in them.
        if part.name != DATABASE && (!part.name.starts_with("log.") || part.name.contains('/')) {
            return Err(bad(path, format!("unknown part {:?}", part.name)));
        }
        let target = partial.join(&part.name);
        let mut to =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target).map_err(at(&target))?;
        io::copy(from, &mut to).and_then(|_| to.sync_all()).map_err(at(&target))
    })?;
    Ok(())
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

struct Reading<'a, R> {
    inner: R,
    hash: &'a mut Sha256,
    seen: u64,
}

impl<R: Read> Read for Reading<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hash.update(&buffer[..n]);
        self.seen += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Expect, Store};

    async fn put(store: &EmbeddedStore, i: u8) -> u64 {
        let key = format!("/registry/pods/default/{}", i % 5);
        store.put(key.into(), vec![i].into(), Expect::Any, None).await.unwrap();
        store.revision().await.unwrap()
    }

    async fn opened_is(data_dir: &Path, revision: u64, value: u8) {
        let store = EmbeddedStore::open(&data_dir.join("store")).unwrap();
        assert_eq!(store.revision().await.unwrap(), revision);
        let (kv, _) = store.get(b"/registry/pods/default/4").await.unwrap();
        assert_eq!(kv.unwrap().value[..], [value]);
        store.close().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn there_and_back_while_in_use_and_while_not() {
        let dir = tempfile::tempdir().unwrap();
        let (file, later) = (dir.path().join("snapshot.db"), dir.path().join("later.db"));
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let store = EmbeddedStore::open(&old.join("store")).unwrap();
        let mut revision = 0;
        for i in 0..20 {
            revision = put(&store, i).await;
        }
        let busy = save(&file, &old).await.unwrap_err();
        assert!(busy.to_string().contains("is in use by another process"), "{busy}");
        serve(&store).unwrap();
        assert_eq!(save(&file, &old).await.unwrap().revision, revision, "it is in use");
        let more = put(&store, 99).await;
        store.close().await;
        drop(store);
        assert_eq!(save(&later, &old).await.unwrap().revision, more, "it is not in use");
        let left: Vec<_> = fs::read_dir(old.join("store")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|n| n == COPY), "{left:?}");

        let (heading, place) = restore(&file, &new).unwrap();
        assert_eq!((heading.keys, place), (5, new.join("store")));
        opened_is(&new, revision, 19).await;
        assert!(restore(&later, &new).unwrap_err().to_string().contains("is not empty"));
        fs::remove_dir_all(&new).unwrap();
        restore(&later, &new).unwrap();
        opened_is(&new, more, 99).await;
    }

    #[tokio::test]
    async fn damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("snapshot.db"), dir.path().join("other"));
        assert!(save(&file, dir.path()).await.unwrap_err().to_string().contains("there is no store in it"));
        assert!(!file.exists() && !partial(&file).exists(), "nothing half-written");
        let store = EmbeddedStore::open(&dir.path().join("store")).unwrap();
        put(&store, 1).await;
        store.close().await;
        drop(store);
        save(&file, dir.path()).await.unwrap();
        let good = fs::read(&file).unwrap();
        let refused = |bytes: &[u8], text: &str| {
            fs::write(&file, bytes).unwrap();
            for error in [status(&file).unwrap_err(), restore(&file, &other).unwrap_err()] {
                assert!(error.to_string().contains(text), "{error}");
            }
            assert!(!other.exists(), "nothing half-written");
        };
        let middle = good.len() / 2;
        let mut changed = good.clone();
        changed[middle] ^= 1;
        refused(&changed, "it is damaged");
        refused(&good[..middle], "it ends early");
        refused(&good[..good.len() - 32], "it ends early");
        refused(&good[..good.len() - 1], "it is damaged");
        refused(b"junk", "not a snapshot");
        refused(b"", "not a snapshot");
        let first = good.iter().position(|b| *b == b'\n').unwrap();
        let text = String::from_utf8(good[..first].to_vec()).unwrap().replace("store.redb", "../x");
        refused(&[text.as_bytes(), &good[first..]].concat(), "it is damaged");
    }
}
