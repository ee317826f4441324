//! What users do: kubectl of v1.20.2 and of today against a whole cluster with real containers. Documents' commands run
//! as they are written, in their order.

mod cronjobs;
mod faults;
mod jobs;
mod manifests;
mod node;
mod services;
mod statefulset;
mod storage;
mod whole_cluster;

use pilothouse_tests::cluster::Cluster;
use pilothouse_tests::kubectl::{Session, Version};
use pilothouse_tests::paths;

/// Runs a test in a namespace of its own on the shared cluster.
fn on_cluster(name: &str, version: Version, test: fn(&Session)) {
    let cluster = match Cluster::shared() {
        Ok(cluster) => cluster,
        Err(why) => return paths::skip(name, &why),
    };
    let short = name.rsplit("::").next().unwrap_or(name);
    match Session::open(&cluster, version, short) {
        Ok(session) => test(&session),
        Err(why) => paths::skip(name, &why),
    }
}

/// Tests that run with either kubectl.
macro_rules! with_each_kubectl {
    ($($name:ident),* $(,)?) => {
        mod kubectl_1_20 {
            $(#[test] fn $name() {
                crate::on_cluster(concat!(module_path!(), "::", stringify!($name)), pilothouse_tests::kubectl::Version::V1_20, super::$name);
            })*
        }
        mod kubectl_current {
            $(#[test] fn $name() {
                crate::on_cluster(concat!(module_path!(), "::", stringify!($name)), pilothouse_tests::kubectl::Version::Current, super::$name);
            })*
        }
    };
}

/// Tests of what kubectl has no part in.
macro_rules! with_one_kubectl {
    ($($name:ident),* $(,)?) => {
        mod cluster {
            $(#[test] fn $name() {
                crate::on_cluster(concat!(module_path!(), "::", stringify!($name)), pilothouse_tests::kubectl::Version::V1_20, super::$name);
            })*
        }
    };
}

pub(crate) use {with_each_kubectl, with_one_kubectl};
