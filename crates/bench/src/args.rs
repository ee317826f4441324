//! The command line. Every count and every time has a bound.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Measures any Kubernetes API server.
#[derive(Debug, Parser)]
#[command(name = "pilothouse-bench", version)]
pub struct Arguments {
    /// Print the report as JSON.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to measure.
    #[command(subcommand)]
    pub command: Command,
}

/// The measurements.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Time from exec of a server to /readyz, its CPU and resident memory.
    Start(Start),
    /// Create, get, update, patch and delete objects in a closed loop or at a given rate.
    Load(Load),
    /// List many pods.
    List(List),
    /// Watch fan-out: creates per second with watchers, and when all of them have all events.
    Watch(Watch),
    /// Raw puts by an etcd client, for the ratio.
    EtcdPut(EtcdPut),
    /// Creates through the server ÷ raw puts to the etcd, alternating in one run.
    Compare(Compare),
    /// Resident memory and CPU per minute of processes.
    Idle(Idle),
    /// From `apply` of one pod to Running, as a watch sees it.
    Pod(Pod),
    /// Latency of creates and gets, and the server's memory, beside clients that behave badly.
    Stress(Stress),
    /// Draws a column of reports (made with --json) as bars: SVG.
    Plot(Plot),
}

/// Which server, and as whom.
#[derive(Debug, Clone, Default, Args)]
pub struct Server {
    /// The API server's URL; taken from the kubeconfig if not given.
    #[arg(long)]
    pub server: Option<String>,
    /// A kubeconfig file; its current context is used.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Bearer token (others on this machine can read it here; a file is better).
    #[arg(long)]
    pub token: Option<String>,
    /// File with the bearer token.
    #[arg(long)]
    pub token_file: Option<PathBuf>,
    /// Client certificate, PEM.
    #[arg(long, requires = "client_key")]
    pub client_certificate: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "client_certificate")]
    pub client_key: Option<PathBuf>,
    /// The server's certificate authority, PEM.
    #[arg(long)]
    pub certificate_authority: Option<PathBuf>,
    /// Accept any server certificate.
    #[arg(long)]
    pub insecure: bool,
    /// Use HTTP/1.1 (one connection per client) rather than HTTP/2.
    #[arg(long)]
    pub http1: bool,
    /// HTTP/2 connections that the clients share.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub connections: u16,
    /// Measure servers that are not on this machine too.
    #[arg(long)]
    pub allow_remote: bool,
    /// The server's process on this machine; without it CPU and memory are read from its /metrics.
    #[arg(long)]
    pub pid: Option<u32>,
}

/// Which etcd.
#[derive(Debug, Clone, Args)]
pub struct Etcd {
    /// Endpoints.
    #[arg(long = "etcd", value_delimiter = ',', required = true, value_name = "URL")]
    pub endpoints: Vec<String>,
    /// Certificate authority of the endpoints, PEM.
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// Client certificate, PEM.
    #[arg(long, requires = "etcd_keyfile")]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// The etcd's process on this machine, for its CPU.
    #[arg(long)]
    pub etcd_pid: Option<u32>,
}

/// How long a measurement may last.
#[derive(Debug, Clone, Args)]
pub struct Bound {
    /// Seconds after which a measurement ends, whatever is done by then.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub time_limit: u64,
}

impl Bound {
    /// As a duration.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.time_limit)
    }
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// ConfigMaps of about 1 KB.
    Configmaps,
    /// Pods of about 1.8 KB that no scheduler takes.
    Pods,
}

/// What is done with an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// POST.
    Create,
    /// GET.
    Get,
    /// PUT without a resource version.
    Update,
    /// Strategic merge patch of an annotation.
    Patch,
    /// DELETE.
    Delete,
}

const COUNT: std::ops::RangeInclusive<i64> = 1..=1_000_000;
const WRITERS: std::ops::RangeInclusive<i64> = 1..=4096;

fn count() -> clap::builder::RangedI64ValueParser<u64> {
    clap::builder::RangedI64ValueParser::new().range(COUNT)
}

fn writers() -> clap::builder::RangedI64ValueParser<u32> {
    clap::builder::RangedI64ValueParser::new().range(WRITERS)
}

/// `load`.
#[derive(Debug, Args)]
pub struct Load {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// What is written.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "configmaps,pods")]
    pub kinds: Vec<Kind>,
    /// What is done, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "create,get,update,patch,delete")]
    pub operations: Vec<Operation>,
    /// Objects.
    #[arg(short, long, default_value_t = 5000, value_parser = count())]
    pub n: u64,
    /// Concurrent clients; several values are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "16", value_parser = writers())]
    pub writers: Vec<u32>,
    /// Requests per second in all; latency then counts from when a request was due. 0: as fast as answers come.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub rate: u32,
    /// Bytes of a ConfigMap and of a pod, where other sizes are wanted.
    #[arg(long, value_parser = clap::value_parser!(u32).range(600..=1_400_000))]
    pub size: Option<u32>,
    /// The namespace, which must exist.
    #[arg(long, short = 'N', default_value = "default")]
    pub namespace: String,
    /// Leave the objects there.
    #[arg(long)]
    pub keep: bool,
    /// The server's etcd (`http://host:port`), for its CPU and how often it is read, from its /metrics.
    #[arg(long, value_name = "URL")]
    pub etcd_metrics: Option<String>,
    /// Time bound.
    #[command(flatten)]
    pub bound: Bound,
}

/// The form that a list is asked for in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// JSON.
    Json,
    /// Kubernetes' protobuf.
    Protobuf,
    /// The table that kubectl prints, JSON.
    Table,
}

/// How recent a list must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Recency {
    /// `resourceVersion=0`: any.
    Any,
    /// The most recent.
    Consistent,
}

/// `list`.
#[derive(Debug, Args)]
pub struct List {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Pods to make (and remove) for it.
    #[arg(short, long, default_value_t = 5000, value_parser = count())]
    pub n: u64,
    /// Lists of each sort.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub lists: u64,
    /// Concurrent clients.
    #[arg(long, default_value_t = 4, value_parser = writers())]
    pub clients: u32,
    /// Forms, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "json,protobuf")]
    pub forms: Vec<Form>,
    /// Recencies, one after the other.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "any,consistent")]
    pub recencies: Vec<Recency>,
    /// Chunk size (`limit`); 0: all at once.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub chunk: u32,
    /// Label selector.
    #[arg(long)]
    pub selector: Option<String>,
    /// Field selector.
    #[arg(long)]
    pub field_selector: Option<String>,
    /// The namespace, which must exist.
    #[arg(long, short = 'N', default_value = "default")]
    pub namespace: String,
    /// Time bound.
    #[command(flatten)]
    pub bound: Bound,
}

/// `plot`.
#[derive(Debug, Args)]
pub struct Plot {
    /// What each report is called, and its file.
    #[arg(required = true, value_name = "NAME=FILE")]
    pub reports: Vec<String>,
    /// The column with the figures.
    #[arg(long)]
    pub column: String,
    /// The columns that say which rows of different reports belong together.
    #[arg(long, value_delimiter = ',', default_value = "what")]
    pub label: Vec<String>,
    /// What stands above; the column's name if not given.
    #[arg(long)]
    pub title: Option<String>,
    /// Bars as long as the logarithm.
    #[arg(long)]
    pub log: bool,
}

/// A client that behaves badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Nuisance {
    /// Watchers that do not read.
    Stalled,
    /// Connections that ask nothing.
    Idle,
    /// New connections all the time.
    Handshakes,
    /// Objects that are too large.
    Large,
    /// Lists of everything, by many at once.
    Lists,
}

/// `stress`.
#[derive(Debug, Args)]
pub struct Stress {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Who is beside, one after the other, after a run without any.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "stalled,idle,handshakes,large,lists")]
    pub nuisances: Vec<Nuisance>,
    /// Creates per second, and gets per second.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rate: u32,
    /// Seconds of each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Watchers that do not read.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub watchers: u32,
    /// Idle connections; client and server need as many open files.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    pub idle: u32,
    /// TLS handshakes a second.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub handshakes: u32,
    /// Clients that list everything.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub lists: u32,
    /// The namespace, which must exist.
    #[arg(long, short = 'N', default_value = "default")]
    pub namespace: String,
    /// Time bound.
    #[command(flatten)]
    pub bound: Bound,
}

/// `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Watchers; several values are measured one after the other, after a run without any.
    #[arg(long, value_delimiter = ',', default_value = "100,1000", value_parser = clap::builder::RangedI64ValueParser::<u32>::new().range(1..=10_000))]
    pub watchers: Vec<u32>,
    /// Watches on one HTTP/2 connection.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=250))]
    pub per_connection: u32,
    /// ConfigMaps created.
    #[arg(short, long, default_value_t = 2000, value_parser = count())]
    pub n: u64,
    /// Who creates them.
    #[arg(long, default_value_t = 16, value_parser = writers())]
    pub writers: u32,
    /// The namespace, which must exist.
    #[arg(long, short = 'N', default_value = "default")]
    pub namespace: String,
    /// Time bound.
    #[command(flatten)]
    pub bound: Bound,
}

/// `etcd-put`.
#[derive(Debug, Args)]
pub struct EtcdPut {
    /// The etcd.
    #[command(flatten)]
    pub etcd: Etcd,
    /// Puts.
    #[arg(short, long, default_value_t = 20_000, value_parser = count())]
    pub n: u64,
    /// Concurrent writers; several values are measured one after the other.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64", value_parser = writers())]
    pub writers: Vec<u32>,
    /// Bytes of a value.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1_400_000))]
    pub size: u32,
    /// gRPC connections that the writers share.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub etcd_connections: u16,
    /// Use an etcd that is not on this machine too.
    #[arg(long)]
    pub allow_remote: bool,
    /// Time bound.
    #[command(flatten)]
    pub bound: Bound,
}

/// `compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// The etcd that raw puts go to.
    #[command(flatten)]
    pub etcd: Etcd,
    /// What is written.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "configmaps,pods")]
    pub kinds: Vec<Kind>,
    /// Creates and puts of one round.
    #[arg(short, long, default_value_t = 5000, value_parser = count())]
    pub n: u64,
    /// Rounds; the report shows the median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,
    /// Concurrent writers of either.
    #[arg(long, value_delimiter = ',', default_value = "64", value_parser = writers())]
    pub writers: Vec<u32>,
    /// The namespace, which must exist.
    #[arg(long, short = 'N', default_value = "default")]
    pub namespace: String,
    /// Time bound of one round's half.
    #[command(flatten)]
    pub bound: Bound,
}

/// `start`.
#[derive(Debug, Args)]
pub struct Start {
    /// The server; its certificate is not looked at, /readyz is asked without credentials unless some are given.
    #[command(flatten)]
    pub server: Server,
    /// Starts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub runs: u32,
    /// Seconds to watch it idle after it was ready.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=600))]
    pub idle: u64,
    /// Seconds until a start has failed.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub ready_limit: u64,
    /// Where the server's output goes; nowhere if not given.
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// The command line; `{run}` in it becomes the number of the run (for a fresh data directory each time).
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// `idle`.
#[derive(Debug, Args)]
pub struct Idle {
    /// Processes.
    #[arg(long, value_delimiter = ',', required = true)]
    pub pid: Vec<u32>,
    /// With all their descendants.
    #[arg(long)]
    pub tree: bool,
    /// For how long.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
}

/// `pod`.
#[derive(Debug, Args)]
pub struct Pod {
    /// The server.
    #[command(flatten)]
    pub server: Server,
    /// Pods, one after the other.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub runs: u32,
    /// The image, which the node should have.
    #[arg(long, default_value = "busybox")]
    pub image: String,
    /// What the container runs.
    #[arg(long, value_delimiter = ' ', default_value = "sleep 3600")]
    pub args: Vec<String>,
    /// The namespace, which must exist.
    #[arg(long, short = 'N', default_value = "default")]
    pub namespace: String,
    /// Time bound of one pod.
    #[command(flatten)]
    pub bound: Bound,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn defaults() {
        let Command::Load(load) = parse("b load --server https://127.0.0.1:6443").unwrap().command else {
            panic!("load expected")
        };
        assert_eq!((load.n, load.writers, load.server.connections), (5000, vec![16], 4));
        assert_eq!(load.kinds, [Kind::Configmaps, Kind::Pods]);
        assert_eq!(load.operations.len(), 5);
    }

    #[test]
    fn lists_of_values() {
        let line = "b load --kinds pods --operations create,delete --writers 1,64 --json";
        let arguments = parse(line).unwrap();
        assert!(arguments.json);
        let Command::Load(load) = arguments.command else { panic!("load expected") };
        assert_eq!(load.operations, [Operation::Create, Operation::Delete]);
        assert_eq!(load.writers, [1, 64]);
    }

    #[test]
    fn counts_and_times_are_bounded() {
        for line in [
            "b load -n 1000001",
            "b load -n 0",
            "b load --writers 5000",
            "b load --time-limit 99999",
            "b watch --watchers 10001",
            "b etcd-put",
            "b start",
            "b idle",
            "b load --client-certificate a.pem",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn start_takes_a_command_line() {
        let Command::Start(start) =
            parse("b start --server https://127.0.0.1:1 -- server --data-dir=/tmp/d{run}").unwrap().command
        else {
            panic!("start expected")
        };
        assert_eq!(start.command, ["server", "--data-dir=/tmp/d{run}"]);
    }
}
