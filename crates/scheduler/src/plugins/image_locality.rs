//! `ImageLocality`: prefer nodes that have the pod's images, the more the larger they are and the more nodes have them.

use crate::cache::Cluster;
use crate::framework::{MAX_SCORE, Score, ScorePlugin};
use crate::types::{NodeInfo, PodInfo};

const MB: i64 = 1024 * 1024;
const MIN: i64 = 23 * MB;
const MAX_PER_CONTAINER: i64 = 1000 * MB;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct ImageLocality;

impl ScorePlugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn pre_score(&self, pod: &PodInfo, nodes: &[&NodeInfo], cluster: &Cluster) -> Option<Box<dyn Score>> {
        let images: Vec<String> = pod
            .spec()?
            .containers
            .iter()
            .map(|c| normalized(c.image.as_deref().unwrap_or_default()))
            .collect();
        let some = nodes.iter().any(|n| images.iter().any(|i| n.images.contains_key(i)));
        some.then(|| Box::new(Images { images, nodes: cluster.len() as f64 }) as Box<dyn Score>)
    }
}

/// An image's name with its tag, which is `latest` where there is none.
fn normalized(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || image.contains('@') { image.into() } else { format!("{image}:latest") }
}

struct Images {
    images: Vec<String>,
    nodes: f64,
}

impl Score for Images {
    fn score(&self, _: &PodInfo, node: &NodeInfo, cluster: &Cluster) -> i64 {
        let scaled = |i: &String| {
            let size = node.images.get(i).copied().unwrap_or(0);
            (size as f64 * (cluster.nodes_with_image(i) as f64 / self.nodes)) as i64
        };
        let max = MAX_PER_CONTAINER * self.images.len() as i64;
        let sum = self.images.iter().map(scaled).sum::<i64>().clamp(MIN, max);
        MAX_SCORE * (sum - MIN) / (max - MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{cluster, node, pod, scores};
    use serde_json::json;

    #[test]
    fn large_images_attract() {
        let has = |size: i64| json!({"status": {"images": [{"names": ["r/x:latest", "r/x@sha256:0"], "sizeBytes": size}]}});
        let c = cluster([node("a", has(600 * MB)), node("b", json!({}))], []);
        let p = pod(json!({"spec": {"containers": [{"name": "c", "image": "r/x"}]}}));
        assert_eq!(scores(&ImageLocality, &p, &c), [28, 0]);
        assert_eq!(normalized("host:5000/x"), "host:5000/x:latest");
    }
}
