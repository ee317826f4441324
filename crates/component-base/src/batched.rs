//! Connections of HTTP/2 whose writes go out together.
//!
//! A connection is told to write by every stream that has something to say. Under load many of them say it at almost the
//! same time, and a system call (and a TLS record) for each of them would be most of what a small request costs. So
//! that the first one waits until all tasks that can run have run, once; where there are none it does not wait at all.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is written in pieces as large as this goes out at once, and is not copied.
const LARGE: usize = 8 << 10;
/// No more than this is kept back.
const FULL: usize = 64 << 10;

/// A connection whose writes are kept until it is flushed, and whose flush lets other tasks write, too. For users that
/// flush whatever they have written: HTTP/2, not protocols that a connection is handed over to.
#[derive(Debug)]
pub struct Batched<S> {
    inner: S,
    kept: Vec<u8>,
    /// How much of what is kept has been written.
    written: usize,
    /// Whether this flush has let others go first.
    waited: bool,
}

impl<S> Batched<S> {
    /// The connection, with nothing written.
    pub fn new(inner: S) -> Batched<S> {
        Batched { inner, kept: Vec::new(), written: 0, waited: false }
    }
}

impl<S: AsyncWrite + Unpin> Batched<S> {
    /// Writes what is kept.
    fn poll_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            let n = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.kept[self.written..]))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += n;
        }
        self.kept.clear();
        self.written = 0;
        // Idle connections are many.
        if self.kept.capacity() > LARGE {
            self.kept = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Batched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if length >= LARGE || self.kept.len() >= FULL {
            ready!(self.poll_kept(cx))?;
        }
        if length >= LARGE {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        }
        for buf in bufs {
            self.kept.extend_from_slice(buf);
        }
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.kept.is_empty() && !self.waited {
            self.waited = true;
            // A task that wakes itself comes behind all others that can run.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_kept(cx))?;
        self.waited = false;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_kept(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Notes the writes that reach it; takes no more than 5,000 bytes at once, and nothing every other time.
    #[derive(Default)]
    struct Sink {
        writes: Arc<Mutex<Vec<Vec<u8>>>>,
        busy: bool,
    }

    impl AsyncWrite for Sink {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.busy = !self.busy;
            if self.busy {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let taken = buf.len().min(5_000);
            self.writes.lock().unwrap().push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn small_writes_go_out_together_and_large_ones_at_once() {
        let sink = Sink::default();
        let writes = sink.writes.clone();
        let mut connection = Batched::new(sink);
        for i in 0..10_u8 {
            connection.write_all(&[i; 10]).await.unwrap();
        }
        assert!(writes.lock().unwrap().is_empty());
        connection.flush().await.unwrap();
        assert_eq!(writes.lock().unwrap().len(), 1);
        connection.write_all(b"before").await.unwrap();
        connection.write_all(&vec![7; 20_000]).await.unwrap();
        connection.write_all(b"after").await.unwrap();
        connection.shutdown().await.unwrap();
        let all = writes.lock().unwrap().concat();
        let small: Vec<u8> = (0..10).flat_map(|i| [i; 10]).collect();
        assert_eq!(all, [&small[..], b"before", &vec![7; 20_000], b"after"].concat());
    }

    #[tokio::test]
    async fn no_more_than_a_bound_is_kept() {
        let sink = Sink::default();
        let writes = sink.writes.clone();
        let mut connection = Batched::new(sink);
        for _ in 0..100 {
            connection.write_all(&[1; 1_000]).await.unwrap();
        }
        let out: usize = writes.lock().unwrap().iter().map(Vec::len).sum();
        assert!((100_000 - FULL..100_000).contains(&out), "{out}");
    }

    #[tokio::test]
    async fn a_flush_lets_others_write_first() {
        let sink = Sink::default();
        let writes = sink.writes.clone();
        let connection = Arc::new(tokio::sync::Mutex::new(Batched::new(sink)));
        connection.lock().await.write_all(b"a").await.unwrap();
        let mut first = true;
        let flush = std::future::poll_fn(|cx| {
            let mut connection = connection.try_lock().unwrap();
            if std::mem::take(&mut first) {
                assert!(Pin::new(&mut *connection).poll_flush(cx).is_pending());
                assert!(Pin::new(&mut *connection).poll_write(cx, b"b").is_ready());
            }
            Pin::new(&mut *connection).poll_flush(cx)
        });
        flush.await.unwrap();
        assert_eq!(*writes.lock().unwrap(), [b"ab".to_vec()]);
    }

    #[tokio::test]
    async fn what_is_read_passes() {
        let (a, mut b) = tokio::io::duplex(64);
        b.write_all(b"hello").await.unwrap();
        let mut read = [0; 5];
        Batched::new(a).read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
    }
}
