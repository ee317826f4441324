//! The list of controllers. Names are those of `--controllers` in v1.20.

use std::future::Future;
use std::pin::Pin;

use crate::context::Context;
use crate::credentials;
use crate::{accounts, autoscaling, batch, certificates, endpoints, gc, node, policy, volume, workloads};

type Starting = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// One controller.
pub struct Controller {
    /// Its name.
    pub name: &'static str,
    /// Whether `*` covers it.
    pub on_by_default: bool,
    start: fn(Context) -> Starting,
}

macro_rules! controller {
    ($name:literal, $default:literal, $start:path) => {
        Controller { name: $name, on_by_default: $default, start: |c| Box::pin($start(c)) }
    };
    ($name:literal, $start:path) => {
        controller!($name, true, $start)
    };
}

/// All controllers there are. Each starts by an `async fn(Context) -> anyhow::Result<()>` that returns once its tasks run.
pub const ALL: &[Controller] = &[
    controller!("namespace", gc::namespace::start),
    controller!("garbagecollector", gc::garbage_collector::start),
    controller!("podgc", gc::pod_gc::start),
    controller!("nodelifecycle", node::lifecycle::start),
    controller!("nodeipam", node::ipam::start),
    controller!("ttl", node::ttl::start),
    controller!("serviceaccount", accounts::service_account::start),
    controller!("serviceaccount-token", accounts::tokens::start),
    controller!("root-ca-cert-publisher", accounts::root_ca::start),
    controller!("clusterrole-aggregation", accounts::aggregation::start),
    controller!("replicationcontroller", workloads::replicas::start_replication_controllers),
    controller!("replicaset", workloads::replicas::start_replica_sets),
    controller!("deployment", workloads::deployment::start),
    controller!("daemonset", workloads::daemonset::start),
    controller!("statefulset", workloads::statefulset::start),
    controller!("job", batch::job::start),
    controller!("cronjob", batch::cronjob::start),
    controller!("ttl-after-finished", batch::ttl::start),
    controller!("disruption", policy::disruption::start),
    controller!("resourcequota", policy::resource_quota::start),
    controller!("horizontalpodautoscaling", autoscaling::horizontal::start),
    controller!("endpoint", endpoints::endpoints::start),
    controller!("endpointslice", endpoints::slices::start),
    controller!("endpointslicemirroring", endpoints::mirroring::start),
    controller!("persistentvolume-binder", volume::binder::start),
    controller!("persistentvolume-expander", volume::expand::start),
    controller!("attachdetach", volume::attach::start),
    controller!("local-path", volume::local_path::start),
    controller!("pvc-protection", volume::protection::start_claims),
    controller!("pv-protection", volume::protection::start_volumes),
    controller!("csrapproving", certificates::approve::start),
    controller!("csrsigning", certificates::sign::start),
    controller!("csrcleaner", certificates::clean::start),
    controller!("bootstrapsigner", false, certificates::bootstrap::start_signer),
    controller!("tokencleaner", false, certificates::bootstrap::start_cleaner),
];

/// Names that v1.20 knows and that have nothing to do here: cloud providers' controllers and the like. They are
/// accepted in `--controllers`.
pub const NOT_HERE: &[&str] = &["service", "route", "cloud-node-lifecycle", "ephemeral-volume"];

/// Starts all that are enabled.
pub async fn start(context: &Context) -> anyhow::Result<()> {
    for controller in ALL {
        if context.config.enabled(controller.name, controller.on_by_default) {
            let mut own = context.clone();
            if let (Some(config), Some(account)) =
                (&context.impersonal, credentials::account(controller.name))
            {
                let (limit, stop) = (context.config.limit, context.stop.clone());
                own.client = credentials::client(config, &context.client, account, limit, stop).await?;
            }
            (controller.start)(own).await?;
            tracing::info!("started {:?}", controller.name);
        }
    }
    Ok(())
}
