//! The port: UDP and TCP (RFC 1035, 7766).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use parking_lot::RwLock;
use pilothouse_component_base::metrics::Metrics;
use pilothouse_component_base::signals::Stop;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::answer::{self, Outcome};
use crate::forward::Forwarder;
use crate::zone::Zone;

/// A TCP client that says nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(10);
/// As many queries are worked on at once; further ones over UDP are dropped, as a full queue would drop them.
const AT_ONCE: usize = 4096;
/// The largest UDP answer to a client that does not say what it takes, and to one that does.
const PLAIN_UDP: usize = 512;
const LARGEST_UDP: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    rcode: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtoLabel {
    proto: &'static str,
}

/// What is counted; names are those of CoreDNS, which dashboards know.
#[derive(Debug, Clone, Default)]
pub struct Counters {
    requests: Family<ProtoLabel, Counter>,
    responses: Family<CodeLabel, Counter>,
}

impl Counters {
    /// Registers them.
    pub fn register(metrics: &Metrics) -> Counters {
        let c = Counters::default();
        metrics.register(|r| {
            r.register(
                "coredns_dns_requests_total",
                "Counter of DNS requests made per protocol.",
                c.requests.clone(),
            );
            r.register(
                "coredns_dns_responses_total",
                "Counter of response status codes.",
                c.responses.clone(),
            );
        });
        c
    }
}

/// Answers queries.
pub struct Resolver {
    /// The zone as it is now.
    pub zone: Arc<RwLock<Arc<Zone>>>,
    /// Seconds that answers may be kept.
    pub ttl: u32,
    /// Who knows other names.
    pub forwarder: Forwarder,
    /// What is counted.
    pub counters: Counters,
}

impl Resolver {
    /// The answer to a query's bytes; `None` for what is no query at all.
    async fn resolve(&self, bytes: &[u8], tcp: bool) -> Option<Vec<u8>> {
        let proto = if tcp { "tcp" } else { "udp" };
        self.counters.requests.get_or_create(&ProtoLabel { proto }).inc();
        let query = match Message::from_vec(bytes) {
            Ok(q) => q,
            Err(_) => return malformed(bytes),
        };
        let zone = self.zone.read().clone();
        let message = match answer::answer(&zone, &query, self.ttl) {
            Outcome::Answer(m) => *m,
            Outcome::Forward => match self.forwarder.ask(bytes, tcp).await {
                Some(answer) => {
                    self.count(answer.get(3).map_or(0, |b| b & 15));
                    return Some(answer);
                }
                None => answer::failure(&query),
            },
        };
        self.count(message.metadata.response_code.low());
        let encoded = message.to_vec().ok()?;
        let room = match &query.edns {
            Some(e) => usize::from(e.max_payload()).clamp(PLAIN_UDP, LARGEST_UDP),
            None => PLAIN_UDP,
        };
        if tcp || encoded.len() <= room { Some(encoded) } else { message.truncate().to_vec().ok() }
    }

    fn count(&self, code: u8) {
        let rcode = ResponseCode::from(0, code).to_str().to_string();
        self.counters.responses.get_or_create(&CodeLabel { rcode }).inc();
    }
}

/// `FORMERR` to what has a header at least, and is not itself an answer.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let header: &[u8; 12] = bytes.get(..12)?.try_into().ok()?;
    if header[2] & 0x80 != 0 {
        return None;
    }
    Some(vec![header[0], header[1], 0x80 | (header[2] & 0x79), 1, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Listens on UDP and TCP until `stop`. An address in use is an error at once.
pub async fn listen(addr: SocketAddr, resolver: Arc<Resolver>, stop: Stop) -> std::io::Result<()> {
    let named = |e: std::io::Error| std::io::Error::new(e.kind(), format!("failed to listen on {addr}: {e}"));
    let udp = Arc::new(UdpSocket::bind(addr).await.map_err(named)?);
    let tcp = TcpListener::bind(addr).await.map_err(named)?;
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let (r, s, free) = (resolver.clone(), stop.clone(), slots.clone());
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        loop {
            let received = tokio::select! { _ = s.wait() => return, r = udp.recv_from(&mut buffer) => r };
            let Ok((n, from)) = received else { continue };
            let Ok(slot) = free.clone().try_acquire_owned() else { continue };
            let (query, udp, r) = (buffer[..n].to_vec(), udp.clone(), r.clone());
            tokio::spawn(async move {
                if let Some(answer) = r.resolve(&query, false).await {
                    let _ = udp.send_to(&answer, from).await;
                }
                drop(slot);
            });
        }
    });
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! { _ = stop.wait() => return, a = tcp.accept() => a };
            let Ok((stream, _)) = accepted else { continue };
            let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
            let r = resolver.clone();
            tokio::spawn(async move {
                let _ = serve_tcp(stream, &r).await;
                drop(slot);
            });
        }
    });
    Ok(())
}

async fn serve_tcp(mut stream: TcpStream, resolver: &Resolver) -> std::io::Result<()> {
    loop {
        let Ok(length) = timeout(IDLE, stream.read_u16()).await else { return Ok(()) };
        let mut query = vec![0; usize::from(length?)];
        let Ok(read) = timeout(IDLE, stream.read_exact(&mut query)).await else { return Ok(()) };
        read?;
        let Some(answer) = resolver.resolve(&query, true).await else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zone::tests::zone;
    use hickory_proto::op::{MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};

    async fn server(upstream: Vec<SocketAddr>) -> (SocketAddr, pilothouse_component_base::signals::Stopper) {
        let (stopper, stop) = Stop::new();
        let addr = {
            let probe = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            probe.local_addr().unwrap()
        };
        let resolver = Resolver {
            zone: Arc::new(RwLock::new(Arc::new(zone()))),
            ttl: 5,
            forwarder: Forwarder::new(upstream),
            counters: Counters::default(),
        };
        listen(addr, Arc::new(resolver), stop).await.unwrap();
        (addr, stopper)
    }

    fn query(name: &str) -> Vec<u8> {
        let mut m = Message::new(99, MessageType::Query, OpCode::Query);
        m.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        m.to_vec().unwrap()
    }

    #[tokio::test]
    async fn answers_forwards_and_survives_junk() {
        let (upstream, _a) = server(vec![]).await;
        let (addr, _b) = server(vec![upstream]).await;
        let f = Forwarder::new(vec![addr]);
        for tcp in [false, true] {
            let answer = f.ask(&query("web-0.nginx.default.svc.cluster.local."), tcp).await.unwrap();
            assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
            // The upstream has nobody to ask: its failure comes back.
            let answer = f.ask(&query("example.com."), tcp).await.unwrap();
            assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::ServFail);
        }
        let mut junk = query("x.");
        junk.truncate(14);
        let answer = f.ask(&junk, false).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::FormErr);
        assert!(
            listen(
                addr,
                Arc::new(Resolver {
                    zone: Arc::new(RwLock::new(Arc::new(Zone::default()))),
                    ttl: 5,
                    forwarder: Forwarder::new(vec![]),
                    counters: Counters::default(),
                }),
                Stop::new().1
            )
            .await
            .is_err()
        );
    }
}
