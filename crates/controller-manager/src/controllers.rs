//! The list of controllers. Names are those of `--controllers` in v1.20.

use std::future::Future;
use std::pin::Pin;

use crate::context::Context;

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
    ($name:literal, $($module:ident)::+) => {
        controller!($name, true, $($module)::+)
    };
    ($name:literal, $default:literal, $($module:ident)::+) => {
        Controller { name: $name, on_by_default: $default, start: |c| Box::pin(crate::$($module)::+::start(c)) }
    };
}

/// All controllers there are. Each module has `pub async fn start(context: Context) -> anyhow::Result<()>`, which
/// returns once its tasks run.
pub const ALL: &[Controller] = &[
    controller!("namespace", gc::namespace),
    controller!("serviceaccount", accounts::service_account),
    controller!("serviceaccount-token", accounts::tokens),
    controller!("root-ca-cert-publisher", accounts::root_ca),
    controller!("clusterrole-aggregation", accounts::aggregation),
];

/// Names that v1.20 knows and that have nothing to do here: cloud providers' controllers and the like. They are
/// accepted in `--controllers`.
pub const NOT_HERE: &[&str] = &["service", "route", "cloud-node-lifecycle"];

/// Starts all that are enabled.
pub async fn start(context: &Context) -> anyhow::Result<()> {
    for controller in ALL {
        if context.config.enabled(controller.name, controller.on_by_default) {
            (controller.start)(context.clone()).await?;
            tracing::info!("started {:?}", controller.name);
        }
    }
    Ok(())
}
