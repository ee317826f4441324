//! `MutatingAdmissionWebhook` and `ValidatingAdmissionWebhook`
//! (<https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/>).

pub mod call;
pub mod rules;

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use futures::future::join_all;
use pilothouse_api::kinds::admissionregistration::expressions::Environment;
use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use pilothouse_apimachinery::version::Release;

use self::call::Answer;
use self::rules::GroupVersion;
use super::expressions::{Asked, Input, Programs, conditions_hold};
use crate::json::{bool_at, list_at, str_at};
use crate::metrics::{AdmissionMetrics, StepLabels};
use crate::outbound::webhook::Clients;
use crate::request::{AdmissionRequest, Authorizer, Mutation, Objects, Validation};

/// The group of webhooks' and policies' configurations.
pub const GROUP: &str = "admissionregistration.k8s.io";

/// What both plug-ins share.
pub struct Webhooks {
    objects: Arc<dyn Objects>,
    authorizer: Arc<dyn Authorizer>,
    programs: Programs,
    scheme: Scheme,
    clients: Clients,
    metrics: AdmissionMetrics,
}

/// Changes objects by webhooks.
pub struct Mutating(pub Arc<Webhooks>);
/// Refuses objects by webhooks.
pub struct Validating(pub Arc<Webhooks>);

/// One webhook of a configuration.
struct Webhook {
    /// Its configuration's name and its place there.
    id: String,
    settings: Value,
}

/// The kind of error in metrics where a webhook has refused a request.
const NO_ERROR: &str = "no_error";

/// The plug-in under whose name it is noted who is asked again.
const MUTATING: &str = "MutatingAdmissionWebhook";

impl Webhooks {
    /// Webhooks that are configured in `objects`.
    pub fn new(
        objects: Arc<dyn Objects>,
        authorizer: Arc<dyn Authorizer>,
        release: Release,
        metrics: AdmissionMetrics,
    ) -> Webhooks {
        Webhooks {
            objects,
            authorizer,
            programs: Programs::default(),
            scheme: Scheme::new(release),
            clients: Clients::default(),
            metrics,
        }
    }

    /// All webhooks of a kind of configuration that are asked about a request: configurations by name, webhooks in
    /// their order.
    fn configured(&self, resource: &str, r: &AdmissionRequest) -> Vec<Webhook> {
        if self.objects.revision(GROUP, resource) == 0 || !Self::concerns(r) {
            return Vec::new();
        }
        let mut all = self.objects.list(GROUP, resource, "");
        all.sort_by(|a, b| str_at(a, &["metadata", "name"]).cmp(str_at(b, &["metadata", "name"])));
        let webhooks = |configuration: Arc<Value>| {
            let of = str_at(&configuration, &["metadata", "name"]).to_string();
            let all = list_at(&configuration, &["webhooks"]).to_vec();
            all.into_iter()
                .enumerate()
                .map(move |(i, settings)| Webhook { id: format!("{of}/{i}"), settings })
        };
        all.into_iter().flat_map(webhooks).collect()
    }

    /// Whether webhooks are asked at all: never about their own configuration.
    fn concerns(r: &AdmissionRequest) -> bool {
        !(r.group == GROUP
            && matches!(
                r.resource.as_str(),
                "mutatingwebhookconfigurations" | "validatingwebhookconfigurations"
            ))
    }

    /// Where a resource is served, too: in other versions and, if it has moved, in other groups.
    pub(crate) fn others(&self, r: &AdmissionRequest) -> Vec<GroupVersion> {
        let Some(known) = self.scheme.resource(&r.group, &r.version, &r.resource) else {
            let definition = format!("{}.{}", r.resource, r.group);
            let definition =
                self.objects.get("apiextensions.k8s.io", "customresourcedefinitions", "", &definition);
            let versions = definition.iter().flat_map(|d| list_at(d, &["spec", "versions"]));
            return versions
                .filter(|v| bool_at(v, &["served"]) && str_at(v, &["name"]) != r.version)
                .map(|v| GroupVersion { group: r.group.clone(), version: str_at(v, &["name"]).into() })
                .collect();
        };
        self.scheme
            .resources()
            .filter(|x| {
                x.plural == known.plural
                    && x.kind == known.kind
                    && x.hub_version() == known.hub_version()
                    && x.path() != known.path()
            })
            .map(|x| GroupVersion { group: x.group.to_string(), version: x.version.to_string() })
            .collect()
    }

    /// An object as it is in a group's version, with its type.
    pub(crate) async fn versioned(
        &self,
        r: &AdmissionRequest,
        seen: &GroupVersion,
        object: &Value,
    ) -> Result<Value, String> {
        let mut out = object.clone();
        if !out.is_object() || !r.subresource.is_empty() {
            return Ok(out);
        }
        let api_version = pilothouse_api::convert::api_version(&seen.group, &seen.version);
        if let Some(resource) = self.scheme.resource(&seen.group, &seen.version, &r.resource) {
            resource.from_hub(&mut out);
        } else if seen.version != r.version {
            out["apiVersion"] = pilothouse_api::convert::api_version(&r.group, &r.version).into();
            let converted = self.objects.in_version(&r.group, &r.resource, out, &api_version).await;
            out = converted.map_err(|e| e.message)?;
        }
        out["apiVersion"] = api_version.into();
        out["kind"] = r.kind.clone().into();
        Ok(out)
    }

    /// An object that a webhook has changed, in the hub version, with defaults.
    pub(crate) async fn hub(
        &self,
        r: &AdmissionRequest,
        seen: &GroupVersion,
        changed: Value,
    ) -> Result<Value, String> {
        if !r.subresource.is_empty() {
            return Ok(changed);
        }
        let Some(resource) = self.scheme.resource(&seen.group, &seen.version, &r.resource) else {
            if seen.version == r.version {
                return Ok(changed);
            }
            let own = pilothouse_api::convert::api_version(&r.group, &r.version);
            let back = self.objects.in_version(&r.group, &r.resource, changed, &own).await;
            return back.map_err(|e| e.message);
        };
        let mut object = resource.decode_value(changed, None).map_err(|e| e.message)?.object;
        let context = resource.context("", true);
        resource.to_hub(&mut object, &context);
        Ok(object)
    }

    /// Calls a webhook, if it wants the request. With the group and version in which the object was sent. `step` is
    /// as metrics name it.
    async fn ask(
        &self,
        webhook: &Value,
        r: &AdmissionRequest,
        others: &[GroupVersion],
        step: &'static str,
    ) -> Result<Option<(GroupVersion, Answer)>, Status> {
        let Some(seen) = rules::version(webhook, r, others) else { return Ok(None) };
        if !rules::selected(webhook, r, &*self.objects) {
            return Ok(None);
        }
        let name = str_at(webhook, &["name"]);
        let unversioned = |why: String| Status::internal(format!("failed to convert object version: {why}"));
        let object = self.versioned(r, &seen, &r.object).await.map_err(unversioned)?;
        let old = self.versioned(r, &seen, &r.old_object).await.map_err(unversioned)?;
        let conditions = list_at(webhook, &["matchConditions"]);
        let (object, old) = if conditions.is_empty() {
            (object, old)
        } else {
            let environment = Environment { authorizer: true, ..Environment::default() };
            let input = Input::new(r, &seen, object, old);
            let asked = Asked::new(self.authorizer.clone(), r.user.clone());
            match conditions_hold(conditions, &environment, &self.programs, &input, &asked).await {
                Ok(true) => (input.object, input.old),
                Ok(false) => return Ok(None),
                Err(_) if str_at(webhook, &["failurePolicy"]) == "Ignore" => return Ok(None),
                Err(why) => return Err(super::forbidden(r, why)),
            }
        };
        if r.dry_run && !matches!(str_at(webhook, &["sideEffects"]), "None" | "NoneOnDryRun") {
            return Err(Status::bad_request(format!("admission webhook {name:?} does not support dry run")));
        }
        let began = Instant::now();
        let result = match call::review(webhook, r, &seen, object, old) {
            Some(review) => call::call(&self.clients, webhook, &*self.objects, &review).await,
            None => Err("webhook does not accept known AdmissionReview versions (v1, v1beta1)".into()),
        };
        let outcome = match result {
            Ok(answer) => {
                answer.warnings.iter().for_each(|text| r.warnings.add(text));
                for (key, value) in &answer.annotations {
                    r.warnings.annotate(&format!("{name}/{key}"), value);
                }
                if answer.allowed {
                    Ok(Some((seen, answer)))
                } else {
                    Err((call::denial(name, &answer.status), NO_ERROR))
                }
            }
            Err(why) if str_at(webhook, &["failurePolicy"]) == "Ignore" => {
                tracing::warn!("Failed calling webhook, failing open {name}: {why}");
                Ok(None)
            }
            Err(why) => Err((
                Status::internal(format!("failed calling webhook {name:?}: {why}")),
                "calling_webhook_error",
            )),
        };
        let labels = StepLabels { r#type: step, operation: r.operation, rejected: outcome.is_err() };
        self.metrics.webhook(name, labels, began.elapsed());
        outcome.map_err(|(refusal, error)| {
            let code = if error == NO_ERROR { refusal.code } else { 0 };
            self.metrics.rejected(name, labels, error, code);
            refusal
        })
    }

    /// Lets one webhook change the request's object; whether it has.
    async fn mutate(
        &self,
        webhook: &Value,
        r: &mut AdmissionRequest,
        others: &[GroupVersion],
    ) -> Result<bool, Status> {
        let Some((seen, answer)) = self.ask(webhook, r, others, "admit").await? else { return Ok(false) };
        let Some(patch) = answer.patch.filter(|_| !r.object.is_null()) else { return Ok(false) };
        let before = self.versioned(r, &seen, &r.object).await.map_err(Status::internal)?;
        let changed =
            pilothouse_api::patch::json::apply(&before, &patch).map_err(|e| Status::internal(e.message))?;
        let changed = self.hub(r, &seen, changed).await.map_err(Status::internal)?;
        let is_changed = changed != r.object;
        r.object = changed;
        Ok(is_changed)
    }
}

#[async_trait]
impl Mutation for Mutating {
    async fn admit(&self, r: &mut AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let webhooks = self.0.configured("mutatingwebhookconfigurations", r);
        if webhooks.is_empty() {
            return Ok(());
        }
        let others = self.0.others(r);
        r.reinvocation.begin(MUTATING, &r.object);
        for Webhook { id, settings } in &webhooks {
            if r.reinvocation.skips(MUTATING, id) {
                continue;
            }
            let changed = self.0.mutate(settings, r, &others).await?;
            let if_needed = str_at(settings, &["reinvocationPolicy"]) == "IfNeeded";
            r.reinvocation.asked(MUTATING, id, changed, if_needed);
        }
        r.reinvocation.end(MUTATING, &r.object);
        Ok(())
    }
}

#[async_trait]
impl Validation for Validating {
    async fn validate(&self, r: &AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        let webhooks = self.0.configured("validatingwebhookconfigurations", r);
        if webhooks.is_empty() {
            return Ok(());
        }
        let others = self.0.others(r);
        let asked = webhooks.iter().map(|w| self.0.ask(&w.settings, r, &others, "validating"));
        for answer in join_all(asked).await {
            answer?;
        }
        Ok(())
    }
}
