//! `pilothouse snapshot`: what the embedded store holds, in one file, and back. The store is stopped meanwhile (with
//! etcd, `etcdctl snapshot` does this).
//!
//! A snapshot is a line of JSON that says what follows, the store's files one after the other, and the SHA-256 of all
//! that. History comes with it: revisions and resource versions go on where they were.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use pilothouse_store::embedded::EmbeddedStore;
use pilothouse_store::{Range, Store};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::components;

const USAGE: &str = "\
Usage:
  pilothouse snapshot save FILE [--data-dir DIR]      what a stopped store holds, into FILE
  pilothouse snapshot status FILE                     what FILE holds
  pilothouse snapshot restore FILE [--data-dir DIR]   a store out of FILE; there may be none in DIR yet

DIR is that of `pilothouse up` (/var/lib/pilothouse if not given) or of `kube-apiserver --data-dir`.
";

const FORMAT: &str = "pilothouse-snapshot-1";
const DATABASE: &str = "store.redb";

/// The first line of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
struct Heading {
    format: String,
    /// Where in the data directory the store was.
    place: String,
    revision: u64,
    keys: usize,
    files: Vec<Part>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Part {
    name: String,
    size: u64,
}

/// Runs the command.
pub fn main(args: &[String]) -> anyhow::Result<()> {
    let (mut rest, mut data_dir) = (Vec::new(), PathBuf::from("/var/lib/pilothouse"));
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.strip_prefix("--data-dir") {
            Some("") => data_dir = args.next().context("flag needs an argument: --data-dir")?.into(),
            Some(value) if value.starts_with('=') => data_dir = value[1..].into(),
            _ if arg.starts_with('-') && arg != "--help" && arg != "-h" => bail!("unknown flag: {arg}"),
            _ => rest.push(arg.as_str()),
        }
    }
    match rest[..] {
        ["save", file] => components::runtime()?.block_on(save(Path::new(file), &data_dir)),
        ["status", file] => status(Path::new(file)),
        ["restore", file] => restore(Path::new(file), &data_dir),
        [] | ["--help" | "-h" | "help", ..] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => bail!("what is meant by {:?}? See `pilothouse snapshot help`", rest.join(" ")),
    }
}

/// Where in a data directory a store can be: in its own folder, below that of an API server, below that of `up`.
const PLACES: [&str; 3] = ["", "store", "store/store"];

async fn save(file: &Path, data_dir: &Path) -> anyhow::Result<()> {
    let place = PLACES
        .into_iter()
        .find(|p| data_dir.join(p).join(DATABASE).exists())
        .with_context(|| format!("{}: there is no store in it", data_dir.display()))?;
    let dir = data_dir.join(place);
    // Opening it fails where it is in use, and brings what is in its log into the database.
    let store = EmbeddedStore::open(&dir).context("stop what uses the store first")?;
    let all = Range { start: vec![0].into(), end: vec![0xff].into(), count_only: true, ..Range::default() };
    let counted = store.range(all).await?;
    store.close().await;

    let mut files = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == DATABASE || name.starts_with("log.") {
            files.push(Part { name, size: entry.metadata()?.len() });
        }
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let heading = Heading {
        format: FORMAT.into(),
        place: place.into(),
        revision: counted.revision,
        keys: counted.count,
        files,
    };
    let tmp = file.with_extension("partial");
    let written = write(&tmp, &dir, &heading);
    if let Err(e) = written.and_then(|()| fs::rename(&tmp, file).context("rename")) {
        let _ = fs::remove_file(&tmp);
        return Err(e.context(file.display().to_string()));
    }
    println!("Snapshot saved at {}", file.display());
    Ok(())
}

fn write(path: &Path, dir: &Path, heading: &Heading) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut out = Hashing { inner: file, hash: Sha256::new() };
    out.write_all(serde_json::to_string(heading)?.as_bytes())?;
    out.write_all(b"\n")?;
    for part in &heading.files {
        let source = dir.join(&part.name);
        let mut source = File::open(&source).with_context(|| source.display().to_string())?;
        let copied = io::copy(&mut source, &mut out)?;
        ensure!(copied == part.size, "{} has changed meanwhile", part.name);
    }
    let Hashing { mut inner, hash } = out;
    inner.write_all(&hash.finalize())?;
    inner.sync_all()?;
    Ok(())
}

/// Reads a snapshot through and checks it; the parts are given to `each` as they come by.
fn read(
    path: &Path,
    mut each: impl FnMut(&Part, &mut dyn Read) -> anyhow::Result<()>,
) -> anyhow::Result<(Heading, String)> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut input = BufReader::new(file);
    let mut line = Vec::new();
    // A heading is short; a file that is none need not be read for one.
    input.by_ref().take(64 << 10).read_until(b'\n', &mut line)?;
    let heading: Heading = serde_json::from_slice(&line)
        .ok()
        .filter(|h: &Heading| h.format == FORMAT)
        .with_context(|| format!("{}: not a snapshot", path.display()))?;
    let mut hash = Sha256::new();
    hash.update(&line);
    for part in &heading.files {
        let mut reader = Reading { inner: input.by_ref().take(part.size), hash: &mut hash, seen: 0 };
        each(part, &mut reader)?;
        let seen = reader.seen;
        ensure!(seen == part.size, "{}: it ends early", path.display());
    }
    let mut sum = Vec::new();
    input.read_to_end(&mut sum)?;
    let hash = hash.finalize();
    ensure!(sum == hash[..], "{}: its sum is wrong, it is damaged", path.display());
    Ok((heading, hash[..4].iter().map(|b| format!("{b:02x}")).collect()))
}

fn status(path: &Path) -> anyhow::Result<()> {
    let (heading, hash) = read(path, skip)?;
    let size = fs::metadata(path)?.len();
    println!("HASH {hash}\nREVISION {}\nTOTAL KEYS {}\nTOTAL SIZE {size}", heading.revision, heading.keys);
    Ok(())
}

fn skip(_: &Part, from: &mut dyn Read) -> anyhow::Result<()> {
    io::copy(from, &mut io::sink())?;
    Ok(())
}

fn restore(path: &Path, data_dir: &Path) -> anyhow::Result<()> {
    // All of it is checked before anything is made.
    let (heading, _) = read(path, skip)?;
    ensure!(
        PLACES.contains(&heading.place.as_str()),
        "{}: unknown place {:?}",
        path.display(),
        heading.place
    );
    // Without a trailing slash, where the place is the data directory itself.
    let dir: PathBuf = data_dir.join(&heading.place).components().collect();
    if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty: move it away first", dir.display());
    }
    let partial = dir.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
    let written = read(path, |part, from| {
        ensure!(part.name == DATABASE || part.name.starts_with("log."), "unknown part {:?}", part.name);
        ensure!(!part.name.contains('/'), "unknown part {:?}", part.name);
        let target = partial.join(&part.name);
        let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        io::copy(from, &mut to)?;
        to.sync_all()?;
        Ok(())
    });
    let done = written.and_then(|(heading, _)| {
        let _ = fs::remove_dir(&dir);
        fs::rename(&partial, &dir).with_context(|| dir.display().to_string())?;
        Ok(heading)
    });
    match done {
        Ok(heading) => {
            println!(
                "Restored revision {} with {} keys to {}",
                heading.revision,
                heading.keys,
                dir.display()
            );
            Ok(())
        }
        Err(e) => {
            let _ = fs::remove_dir_all(&partial);
            Err(e)
        }
    }
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
    use pilothouse_store::Expect;

    #[tokio::test]
    async fn there_and_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("snapshot");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let store = EmbeddedStore::open(&old.join("store")).unwrap();
        for i in 0..20 {
            let key = format!("/registry/pods/default/{}", i % 5);
            store.put(key.into(), vec![i].into(), Expect::Any, None).await.unwrap();
        }
        let busy = save(&file, &old).await.unwrap_err();
        assert!(format!("{busy:#}").contains("stop what uses the store first"), "{busy:#}");
        let revision = store.revision().await.unwrap();
        store.close().await;
        drop(store);
        save(&file, &old).await.unwrap();

        restore(&file, &new).unwrap();
        let store = EmbeddedStore::open(&new.join("store")).unwrap();
        assert_eq!(store.revision().await.unwrap(), revision);
        let (kv, _) = store.get(b"/registry/pods/default/4").await.unwrap();
        assert_eq!(kv.unwrap().value[..], [19]);
        store.close().await;
        assert!(restore(&file, &new).unwrap_err().to_string().contains("is not empty"));

        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert!(status(&file).unwrap_err().to_string().contains("it is damaged"));
        let other = dir.path().join("other");
        assert!(restore(&file, &other).is_err());
        assert!(!other.exists(), "nothing half-written");
        fs::write(&file, &bytes[..middle]).unwrap();
        assert!(status(&file).unwrap_err().to_string().contains("it ends early"));
        fs::write(&file, "junk").unwrap();
        assert!(status(&file).unwrap_err().to_string().contains("not a snapshot"));
    }
}
