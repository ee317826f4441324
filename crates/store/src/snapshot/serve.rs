//! Snapshots of a store that is in use: who has it open listens on a socket in the store's folder, which only those
//! reach who may read the store's files. A client sends the snapshot's place as a line and gets the snapshot, or a line
//! that begins with `error: `.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{COPY, Error, PLACES, at, write};
use crate::embedded::EmbeddedStore;

const SOCKET: &str = "snapshot.sock";
const FAILED: &[u8] = b"error: ";
/// A client that reads or writes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a copy may take.
const COPYING: Duration = Duration::from_secs(3600);

/// The socket's address, and what has to be kept until it is used: addresses are short, and folders' names need not be.
fn address(dir: &Path) -> io::Result<(PathBuf, File)> {
    let folder = File::open(dir)?;
    Ok((format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()).into(), folder))
}

/// Answers those who ask for snapshots of a store, until that is closed. Needs a tokio runtime.
pub fn serve(store: &Arc<EmbeddedStore>) -> Result<(), Error> {
    let dir = store.dir();
    let error = at(dir);
    // Who has the store open is alone in its folder: what is there was left by somebody who ended early.
    let _ = fs::remove_file(dir.join(SOCKET));
    let _ = fs::remove_dir_all(dir.join(COPY));
    let (path, folder) = address(dir).map_err(&error)?;
    let listener = UnixListener::bind(&path).map_err(&error)?;
    drop(folder);
    fs::set_permissions(dir.join(SOCKET), fs::Permissions::from_mode(0o600)).map_err(&error)?;
    listener.set_nonblocking(true).map_err(&error)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(&error)?;
    let socket = dir.join(SOCKET);
    // The store may end while this waits.
    let weak = Arc::downgrade(store);
    let closed = store.closed();
    tokio::spawn(async move {
        let one = Arc::new(Mutex::new(()));
        tokio::pin!(closed);
        loop {
            let accepted = tokio::select! {
                _ = &mut closed => break,
                accepted = listener.accept() => accepted,
            };
            let stream = accepted.and_then(|(s, _)| s.into_std());
            match (stream, weak.upgrade()) {
                (Ok(stream), Some(store)) => {
                    let one = one.clone();
                    tokio::task::spawn_blocking(move || answer(&store, stream, &one));
                }
                (_, None) => break,
                (Err(e), _) => {
                    tracing::warn!("snapshot: {e}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        let _ = fs::remove_file(socket);
    });
    Ok(())
}

fn answer(store: &EmbeddedStore, stream: UnixStream, one: &Mutex<()>) {
    if let Err(e) = try_answer(store, &stream, one) {
        tracing::warn!("snapshot: {e}");
        let _ = (&stream).write_all(format!("error: {e}\n").as_bytes());
    }
}

fn try_answer(store: &EmbeddedStore, stream: &UnixStream, one: &Mutex<()>) -> Result<(), Error> {
    let error = at(store.dir());
    stream.set_nonblocking(false).map_err(&error)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(&error)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(&error)?;
    let mut line = String::new();
    BufReader::new(stream.take(64)).read_line(&mut line).map_err(&error)?;
    let asked = line.strip_suffix('\n');
    let Some(place) = PLACES.into_iter().find(|p| asked == Some(p)) else {
        return Err(super::bad(store.dir(), format!("unknown place {line:?}")));
    };
    let _one = one.lock();
    write(store, place, &mut BufWriter::with_capacity(1 << 20, stream))
}

/// Asks who has the store of a folder open for a snapshot; false where nobody listens.
pub(super) fn ask(dir: &Path, place: &str, out: &mut File) -> Result<bool, Error> {
    let error = at(dir);
    let (path, _folder) = address(dir).map_err(&error)?;
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => return Ok(false),
        Err(e) => return Err(error(e)),
    };
    stream.set_read_timeout(Some(COPYING)).map_err(&error)?;
    match stream.write_all(format!("{place}\n").as_bytes()) {
        Err(e) if matches!(e.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => return Ok(false),
        written => written.map_err(&error)?,
    }
    let mut start = Vec::new();
    match (&mut stream).take(FAILED.len() as u64).read_to_end(&mut start) {
        // It was about to close the store.
        Err(e) if e.kind() == ErrorKind::ConnectionReset && start.is_empty() => return Ok(false),
        Ok(0) => return Ok(false),
        read => read.map_err(&error)?,
    };
    if start == FAILED {
        let mut text = String::new();
        stream.take(4096).read_to_string(&mut text).map_err(&error)?;
        return Err(Error::Server(text.trim_end().into()));
    }
    out.write_all(&start).and_then(|()| io::copy(&mut stream, out)).map_err(&error)?;
    Ok(true)
}
