//! When there is too little of something: thresholds, how long they must be met, and the conditions that follow.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use pilothouse_apimachinery::quantity::Quantity;
use pilothouse_component_base::flags::parse_duration;
use tokio::time::Instant;

use super::signal::{Condition, Observation, Observations, Signal};
use crate::configuration::KubeletConfiguration;

/// An amount, or a part of all there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// So many.
    Quantity(u64),
    /// So much of the capacity: 0 to 1.
    Part(f64),
}

impl Amount {
    fn parse(text: &str) -> Result<Amount, String> {
        if let Some(percent) = text.strip_suffix('%') {
            let p: f64 = percent.trim().parse().map_err(|_| format!("invalid percentage {text:?}"))?;
            if !(0.0..=100.0).contains(&p) {
                return Err(format!("eviction percentage threshold must be between 0% and 100%: {text}"));
            }
            return Ok(Amount::Part(p / 100.0));
        }
        let q = Quantity::parse(text).map_err(|e| e.to_string())?;
        let value = u64::try_from(q.value()).ok().filter(|v| *v > 0);
        value.map(Amount::Quantity).ok_or_else(|| format!("eviction threshold must be positive: {text}"))
    }

    fn of(self, capacity: u64) -> u64 {
        match self {
            Amount::Quantity(n) => n,
            Amount::Part(p) => (capacity as f64 * p) as u64,
        }
    }
}

/// A threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// From here down there is too little.
    pub value: Amount,
    /// How long that must be so; zero for a hard threshold.
    pub grace: Duration,
    /// Whether pods have no time of their own to end.
    pub hard: bool,
    /// How much more than the threshold there must be before it is good again.
    pub min_reclaim: Option<Amount>,
}

impl Threshold {
    fn met(&self, o: &Observation, with_reclaim: bool) -> bool {
        let mut limit = self.value.of(o.capacity);
        if with_reclaim {
            limit = limit.saturating_add(self.min_reclaim.map_or(0, |m| m.of(o.capacity)));
        }
        o.available < limit
    }
}

/// Reads the configuration's thresholds.
pub fn parse(config: &KubeletConfiguration) -> Result<Vec<Threshold>, String> {
    let parse_map = |field: &str| -> Result<BTreeMap<Signal, Amount>, String> {
        let mut out = BTreeMap::new();
        for (name, text) in config.map(field) {
            let signal = match Signal::parse(&name) {
                Some(s) => s,
                // Follows from memory.available here.
                None if name == "allocatableMemory.available" => continue,
                None => {
                    return Err(format!("invalid configuration: {field}: unknown eviction signal {name}"));
                }
            };
            // 0% and 100% turn a threshold off.
            if matches!(text.as_str(), "0%" | "100%") {
                continue;
            }
            out.insert(
                signal,
                Amount::parse(&text).map_err(|e| format!("invalid configuration: {field}: {e}"))?,
            );
        }
        Ok(out)
    };
    let reclaim = parse_map("evictionMinimumReclaim")?;
    let graces = config.map("evictionSoftGracePeriod");
    let mut all: Vec<Threshold> = parse_map("evictionHard")?
        .into_iter()
        .map(|(signal, value)| Threshold {
            signal,
            value,
            grace: Duration::ZERO,
            hard: true,
            min_reclaim: reclaim.get(&signal).copied(),
        })
        .collect();
    for (signal, value) in parse_map("evictionSoft")? {
        let name = signal.name();
        let text = graces.get(name).ok_or_else(|| {
            format!(
                "invalid configuration: grace period must be specified for the soft eviction threshold {name}"
            )
        })?;
        let grace = parse_duration(text).ok_or_else(|| {
            format!("invalid configuration: evictionSoftGracePeriod: invalid duration {text:?}")
        })?;
        all.push(Threshold { signal, value, grace, hard: false, min_reclaim: reclaim.get(&signal).copied() });
    }
    Ok(all)
}

/// What has been so for how long.
#[derive(Debug, Default)]
pub struct State {
    /// Thresholds that are met, by their place in the list, with the moment from which on they are.
    met_since: HashMap<usize, Instant>,
    /// Conditions with the moment at which they were last seen.
    seen: BTreeMap<Condition, Instant>,
    conditions: BTreeSet<Condition>,
}

impl State {
    /// Takes in how much there is. The thresholds by which to act now, the most pressing first.
    pub fn step<'a>(
        &mut self,
        thresholds: &'a [Threshold],
        observed: &Observations,
        transition: Duration,
        now: Instant,
    ) -> Vec<&'a Threshold> {
        let mut acting = Vec::new();
        for (i, t) in thresholds.iter().enumerate() {
            let met = match observed.get(&t.signal) {
                // What was met stays so until there is as much more as is asked for.
                Some(o) => t.met(o, self.met_since.contains_key(&i)),
                None => false,
            };
            if !met {
                self.met_since.remove(&i);
                continue;
            }
            let since = *self.met_since.entry(i).or_insert(now);
            self.seen.insert(t.signal.condition(), now);
            if now.duration_since(since) >= t.grace {
                acting.push(t);
            }
        }
        self.conditions = self
            .seen
            .iter()
            .filter(|(_, at)| **at == now || now.duration_since(**at) < transition)
            .map(|(c, _)| *c)
            .collect();
        // Memory comes first: without it nothing else goes on.
        acting.sort_by_key(|t| (t.signal != Signal::Memory, !t.hard));
        acting
    }

    /// The conditions that the node has.
    pub fn conditions(&self) -> &BTreeSet<Condition> {
        &self.conditions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thresholds(yaml: &str) -> Result<Vec<Threshold>, String> {
        let text = format!("kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n{yaml}\n");
        parse(&KubeletConfiguration::from_yaml(&text).unwrap())
    }

    fn observed(signal: Signal, available: u64) -> Observations {
        [(signal, Observation { available, capacity: 1000 })].into()
    }

    #[test]
    fn reads_thresholds() {
        let t = thresholds("evictionHard: {memory.available: 100, nodefs.available: 10%, imagefs.available: 0%}\nevictionSoft: {pid.available: 5%}\nevictionSoftGracePeriod: {pid.available: 1m30s}\nevictionMinimumReclaim: {nodefs.available: 5}").unwrap();
        assert_eq!(t.len(), 3);
        assert_eq!((t[0].value, t[1].min_reclaim), (Amount::Quantity(100), Some(Amount::Quantity(5))));
        assert_eq!((t[2].grace, t[2].hard), (Duration::from_secs(90), false));
        assert!(
            thresholds("evictionHard: {x.available: 1}").unwrap_err().contains("unknown eviction signal")
        );
        assert!(thresholds("evictionSoft: {memory.available: 1}").unwrap_err().contains("grace period"));
        assert!(thresholds("evictionHard: {memory.available: -1}").unwrap_err().contains("positive"));
        assert!(thresholds("evictionHard: {memory.available: 101%}").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn conditions_stay_for_a_while() {
        let t = thresholds(
            "evictionHard: {memory.available: 100}\nevictionMinimumReclaim: {memory.available: 50}",
        )
        .unwrap();
        let mut s = State::default();
        let wait = Duration::from_secs(300);
        let now = Instant::now();
        assert!(s.step(&t, &observed(Signal::Memory, 100), wait, now).is_empty());
        assert!(s.conditions().is_empty());
        assert_eq!(s.step(&t, &observed(Signal::Memory, 99), wait, now).len(), 1);
        let later = now + Duration::from_secs(10);
        assert_eq!(
            s.step(&t, &observed(Signal::Memory, 149), wait, later).len(),
            1,
            "not enough was reclaimed"
        );
        assert!(
            s.step(&t, &observed(Signal::Memory, 150), wait, later + Duration::from_secs(299)).is_empty()
        );
        assert_eq!(s.conditions().iter().next(), Some(&Condition::Memory));
        s.step(&t, &observed(Signal::Memory, 150), wait, later + wait);
        assert!(s.conditions().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn soft_thresholds_wait() {
        let t = thresholds("evictionHard: {}\nevictionSoft: {nodefs.available: 10%}\nevictionSoftGracePeriod: {nodefs.available: 1m}").unwrap();
        let mut s = State::default();
        let now = Instant::now();
        let o = observed(Signal::NodeFs, 99);
        assert!(s.step(&t, &o, Duration::ZERO, now).is_empty());
        assert_eq!(s.conditions().len(), 1, "the condition comes before the grace period is over");
        assert_eq!(s.step(&t, &o, Duration::ZERO, now + Duration::from_secs(60)).len(), 1);
    }
}
