//! What a scheduling rule is. A rule is a plain struct in [`plugins`](crate::plugins); a [`Profile`](crate::profile::Profile)
//! lists those in use.
//!
//! A filter plug-in looks at a pod once (`pre_filter`) and makes a [`Filter`] that then judges node after node and can
//! be told of pods that are added to or taken from nodes, as preemption imagines it. A score plug-in does likewise.

use std::borrow::Cow;

use crate::cache::Cluster;
use crate::types::{NodeInfo, PodInfo};

/// The best score of a node.
pub const MAX_SCORE: i64 = 100;

/// How bad a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The node does not fit as it is; taking pods away may help.
    Unschedulable,
    /// The node does not fit whatever pods are taken away.
    Unresolvable,
    /// The rule could not tell.
    Error,
}

/// Why a node, or all nodes, do not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// How bad it is.
    pub code: Code,
    /// For users, one text per reason.
    pub reasons: Vec<Cow<'static, str>>,
}

impl Status {
    /// Taking pods away may help.
    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Status {
        Status { code: Code::Unschedulable, reasons: vec![reason.into()] }
    }

    /// Taking pods away does not help.
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Status {
        Status { code: Code::Unresolvable, reasons: vec![reason.into()] }
    }

    /// The rule could not tell.
    pub fn error(reason: impl Into<Cow<'static, str>>) -> Status {
        Status { code: Code::Error, reasons: vec![reason.into()] }
    }
}

/// A rule that says which nodes fit.
pub trait FilterPlugin: Send + Sync {
    /// The name by which configuration knows it.
    fn name(&self) -> &'static str;

    /// Looks at a pod and at the cluster. `None` where the rule has nothing to say about the pod; an error where no
    /// node fits.
    fn pre_filter(&self, pod: &PodInfo, cluster: &Cluster) -> Result<Option<Box<dyn Filter>>, Status>;
}

/// A rule applied to one pod.
pub trait Filter: Send + Sync {
    /// Whether a node fits.
    fn filter(&self, pod: &PodInfo, node: &NodeInfo, cluster: &Cluster) -> Result<(), Status>;

    /// Takes in that `other` is now on `node`.
    fn add_pod(&mut self, _pod: &PodInfo, _other: &PodInfo, _node: &NodeInfo, _cluster: &Cluster) {}

    /// Takes in that `other` is no longer on `node`.
    fn remove_pod(&mut self, _pod: &PodInfo, _other: &PodInfo, _node: &NodeInfo, _cluster: &Cluster) {}

    /// A copy, for imagined changes.
    fn copy(&self) -> Box<dyn Filter>;
}

/// A rule that says which of the fitting nodes are better.
pub trait ScorePlugin: Send + Sync {
    /// The name by which configuration knows it.
    fn name(&self) -> &'static str;

    /// Looks at a pod and the nodes that fit. `None` where all nodes are alike to the rule.
    fn pre_score(&self, pod: &PodInfo, nodes: &[&NodeInfo], cluster: &Cluster) -> Option<Box<dyn Score>>;
}

/// A score plug-in applied to one pod.
pub trait Score {
    /// A node's score, in any unit until it is normalized.
    fn score(&self, pod: &PodInfo, node: &NodeInfo, cluster: &Cluster) -> i64;

    /// Brings scores into 0..=[`MAX_SCORE`].
    fn normalize(&self, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}
}

/// Scales scores so that the highest becomes [`MAX_SCORE`]; `reverse` turns them round.
pub fn default_normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    if max == 0 {
        if reverse {
            scores.fill(MAX_SCORE);
        }
        return;
    }
    for score in scores {
        *score = MAX_SCORE * *score / max;
        if reverse {
            *score = MAX_SCORE - *score;
        }
    }
}

/// The filters that have something to say about a pod.
pub struct Filters(Vec<Box<dyn Filter>>);

impl Filters {
    /// Prepares filters for a pod; an error where no node can fit.
    pub fn prepare(
        plugins: &[Box<dyn FilterPlugin>],
        pod: &PodInfo,
        cluster: &Cluster,
    ) -> Result<Filters, Status> {
        let mut filters = Vec::with_capacity(plugins.len());
        for plugin in plugins {
            filters.extend(plugin.pre_filter(pod, cluster)?);
        }
        Ok(Filters(filters))
    }

    /// Whether a node fits; the first refusal where it does not.
    pub fn run(&self, pod: &PodInfo, node: &NodeInfo, cluster: &Cluster) -> Result<(), Status> {
        self.0.iter().try_for_each(|f| f.filter(pod, node, cluster))
    }

    /// A copy, for imagined changes.
    pub fn copy(&self) -> Filters {
        Filters(self.0.iter().map(|f| f.copy()).collect())
    }

    /// Puts a pod on an imagined node.
    pub fn add_pod(
        &mut self,
        pod: &PodInfo,
        other: &std::sync::Arc<PodInfo>,
        node: &mut NodeInfo,
        cluster: &Cluster,
    ) {
        node.add_pod(other.clone());
        self.0.iter_mut().for_each(|f| f.add_pod(pod, other, node, cluster));
    }

    /// Takes a pod from an imagined node.
    pub fn remove_pod(&mut self, pod: &PodInfo, other: &PodInfo, node: &mut NodeInfo, cluster: &Cluster) {
        node.remove_pod(&other.uid);
        self.0.iter_mut().for_each(|f| f.remove_pod(pod, other, node, cluster));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizing() {
        let norm = |scores: &[i64], reverse| {
            let mut s = scores.to_vec();
            default_normalize(&mut s, reverse);
            s
        };
        assert_eq!(norm(&[0, 1, 3], false), [0, 33, 100]);
        assert_eq!(norm(&[0, 1, 3], true), [100, 67, 0]);
        assert_eq!(norm(&[0, 0], false), [0, 0]);
        assert_eq!(norm(&[0, 0], true), [100, 100]);
    }
}
