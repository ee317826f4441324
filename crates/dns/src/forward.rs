//! Asking other servers: the query goes on as it came, the answer comes back as it is.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Servers, asked in turn until one answers.
#[derive(Debug, Clone)]
pub struct Forwarder {
    upstream: Vec<SocketAddr>,
}

impl Forwarder {
    /// Asks these.
    pub fn new(upstream: Vec<SocketAddr>) -> Self {
        Forwarder { upstream }
    }

    /// The first answer to a query; `None` where no server answers.
    pub async fn ask(&self, query: &[u8], tcp: bool) -> Option<Vec<u8>> {
        for server in &self.upstream {
            let answer = if tcp {
                timeout(PATIENCE, ask_tcp(*server, query)).await
            } else {
                timeout(PATIENCE, ask_udp(*server, query)).await
            };
            match answer {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(e)) => tracing::debug!(%server, "forward: {e}"),
                Err(_) => tracing::debug!(%server, "forward: timed out"),
            }
        }
        None
    }
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // A socket of its own for each query: its random port makes answers hard to forge.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if n >= 12 && buffer[..2] == query[..2] {
            buffer.truncate(n);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).map_err(|_| std::io::ErrorKind::InvalidInput)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}
