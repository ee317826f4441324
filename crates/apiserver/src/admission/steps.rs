//! The two steps of admission: plug-ins change what is to be stored, and later check it. Counts how long each takes.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use pilothouse_apimachinery::status::Status;
use prometheus_client::metrics::histogram::Histogram;

use crate::metrics::{AdmissionMetrics, StepLabels};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation, Validation};

/// The plug-ins that are on, in their order.
#[derive(Default)]
pub struct Plugins {
    mutating: Vec<Part<dyn Mutation>>,
    validating: Vec<Part<dyn Validation>>,
    metrics: AdmissionMetrics,
}

/// One plug-in's part in one step.
struct Part<P: ?Sized> {
    name: &'static str,
    plugin: Arc<P>,
    /// By operation and outcome, once there is something to count.
    latencies: [OnceLock<Histogram>; 8],
}

impl<P: ?Sized> Part<P> {
    fn new(name: &'static str, plugin: Arc<P>) -> Self {
        Part { name, plugin, latencies: Default::default() }
    }

    /// Counts what the plug-in did since `began`; when that was.
    fn count(&self, metrics: &AdmissionMetrics, labels: StepLabels, began: Instant) -> Instant {
        let now = Instant::now();
        let slot = match labels.operation {
            Operation::Create => 0,
            Operation::Update => 2,
            Operation::Delete => 4,
            Operation::Connect => 6,
        } + usize::from(labels.rejected);
        self.latencies[slot]
            .get_or_init(|| metrics.plugin(self.name, labels))
            .observe((now - began).as_secs_f64());
        now
    }
}

/// What a plug-in takes part in.
pub enum Parts {
    /// It changes objects.
    Mutates(Arc<dyn Mutation>),
    /// It checks them.
    Validates(Arc<dyn Validation>),
    /// Both.
    Both(Arc<dyn Mutation>, Arc<dyn Validation>),
}

/// A plug-in that changes objects.
pub fn mutates(plugin: impl Mutation + 'static) -> Parts {
    Parts::Mutates(Arc::new(plugin))
}

/// A plug-in that checks them.
pub fn validates(plugin: impl Validation + 'static) -> Parts {
    Parts::Validates(Arc::new(plugin))
}

/// A plug-in that does both.
pub fn both(plugin: impl Mutation + Validation + 'static) -> Parts {
    let plugin = Arc::new(plugin);
    Parts::Both(plugin.clone(), plugin)
}

impl Plugins {
    /// None yet, counted among `metrics`.
    pub fn new(metrics: AdmissionMetrics) -> Plugins {
        Plugins { metrics, ..Plugins::default() }
    }

    /// Adds one after the others.
    pub fn add(&mut self, name: &'static str, parts: Parts) {
        match parts {
            Parts::Mutates(m) => self.mutating.push(Part::new(name, m)),
            Parts::Validates(v) => self.validating.push(Part::new(name, v)),
            Parts::Both(m, v) => {
                self.mutating.push(Part::new(name, m));
                self.validating.push(Part::new(name, v));
            }
        }
    }

    /// Lets the plug-ins change the object, or refuse it.
    pub async fn admit(&self, request: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let began = Instant::now();
        let mut outcome = self.round(request, objects).await;
        if outcome.is_ok() && request.reinvocation.begin_second() {
            outcome = self.round(request, objects).await;
        }
        self.metrics.step(labels("admit", request, &outcome), began.elapsed());
        outcome
    }

    async fn round(&self, request: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let mut at = Instant::now();
        for part in &self.mutating {
            let outcome = part.plugin.admit(request, objects).await;
            at = part.count(&self.metrics, labels("admit", request, &outcome), at);
            outcome?;
        }
        Ok(())
    }

    /// Lets the plug-ins refuse the object.
    pub async fn validate(&self, request: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let began = Instant::now();
        let (mut at, mut outcome) = (began, Ok(()));
        for part in &self.validating {
            outcome = part.plugin.validate(request, objects).await;
            at = part.count(&self.metrics, labels("validate", request, &outcome), at);
            if outcome.is_err() {
                break;
            }
        }
        self.metrics.step(labels("validate", request, &outcome), began.elapsed());
        outcome
    }
}

fn labels(step: &'static str, request: &AdmissionRequest, outcome: &Result<(), Status>) -> StepLabels {
    StepLabels { r#type: step, operation: request.operation, rejected: outcome.is_err() }
}
