//! Which keys exist and at which revisions they changed. Held in memory, without the values.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// One change of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version {
    /// When it happened.
    pub(super) revision: u64,
    /// When the key came into being; 0 where this change deleted it.
    pub(super) create: u64,
}

impl Version {
    fn live(self) -> Option<Version> {
        (self.create != 0).then_some(self)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Per key its changes, oldest first; never empty.
    keys: BTreeMap<Bytes, Vec<Version>>,
    revision: u64,
    compacted: u64,
}

impl Index {
    /// An index of nothing. As in etcd, revision 1 is that of the empty store.
    pub(super) fn new(compacted: u64) -> Self {
        Index { keys: BTreeMap::new(), revision: compacted.max(1), compacted }
    }

    /// The newest revision.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The oldest revision that can be read.
    pub(super) fn compacted(&self) -> u64 {
        self.compacted
    }

    /// Takes a change in. Changes come in the order of their revisions.
    pub(super) fn apply(&mut self, key: &[u8], version: Version) {
        self.revision = version.revision;
        match self.keys.get_mut(key) {
            Some(versions) => versions.push(version),
            None => {
                self.keys.insert(Bytes::copy_from_slice(key), vec![version]);
            }
        }
    }

    /// The key as it is now, unless it does not exist.
    pub(super) fn latest(&self, key: &[u8]) -> Option<(Bytes, Version)> {
        let (key, versions) = self.keys.get_key_value(key)?;
        Some((key.clone(), versions.last()?.live()?))
    }

    /// The keys of `[start, end)` as they were at `revision`, at most `limit` of them, and how many there were.
    /// An empty `end` means `start` alone, a zero byte means up to the last key.
    pub(super) fn range(
        &self,
        start: &[u8],
        end: &[u8],
        revision: u64,
        limit: Option<usize>,
    ) -> (Vec<(Bytes, Version)>, usize) {
        let mut found = Vec::new();
        let mut count = 0;
        let mut visit = |key: &Bytes, versions: &[Version]| {
            let at = versions.iter().rev().find(|v| v.revision <= revision).and_then(|v| v.live());
            if let Some(version) = at {
                count += 1;
                if limit.is_none_or(|l| found.len() < l) {
                    found.push((key.clone(), version));
                }
            }
        };
        if end.is_empty() {
            if let Some((key, versions)) = self.keys.get_key_value(start) {
                visit(key, versions);
            }
        } else if end == b"\0" || start < end {
            let to = if end == b"\0" { Bound::Unbounded } else { Bound::Excluded(end) };
            for (key, versions) in self.keys.range::<[u8], _>((Bound::Included(start), to)) {
                visit(key, versions);
            }
        }
        (found, count)
    }

    /// Forgets what is only needed to read before `revision`; the revisions of what it forgot. Deletions at or after
    /// `revision` stay, so that a watch from there sees them.
    pub(super) fn compact(&mut self, revision: u64) -> Vec<u64> {
        self.compacted = revision;
        let mut dropped = Vec::new();
        self.keys.retain(|_, versions| {
            let newer = versions.partition_point(|v| v.revision < revision);
            // The last change before `revision` is what the key holds at `revision`, unless it changed right then.
            let changed_then = versions.get(newer).is_some_and(|v| v.revision == revision);
            let keep_last = newer > 0 && !changed_then && versions[newer - 1].create != 0;
            let cut = if keep_last { newer - 1 } else { newer };
            dropped.extend(versions.drain(..cut).map(|v| v.revision));
            versions.shrink_to_fit();
            !versions.is_empty()
        });
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(revision: u64, create: u64) -> Version {
        Version { revision, create }
    }

    #[test]
    fn reads_at_any_revision_and_forgets_what_compaction_allows() {
        let mut index = Index::new(0);
        index.apply(b"a", put(2, 2));
        index.apply(b"b", put(3, 3));
        index.apply(b"a", put(4, 2));
        index.apply(b"b", put(5, 0));
        index.apply(b"b", put(6, 6));
        let at = |index: &Index, rev| -> Vec<u64> {
            index.range(b"a", b"\0", rev, None).0.iter().map(|(_, v)| v.revision).collect()
        };
        assert_eq!(at(&index, 2), [2]);
        assert_eq!(at(&index, 3), [2, 3]);
        assert_eq!(at(&index, 5), [4]);
        assert_eq!(at(&index, 6), [4, 6]);
        assert_eq!(index.compact(5), [2, 3]);
        assert_eq!(at(&index, 5), [4]);
        assert_eq!(index.compact(6), [5]);
        assert_eq!(index.range(b"a", b"", 6, None).1, 1);
        assert_eq!(index.range(b"b", b"a", 6, None).1, 0);
    }

    proptest! {
        /// Compaction never changes what is read at or after its revision.
        #[test]
        fn compaction_is_not_visible(ops in prop::collection::vec((0u8..5, any::<bool>()), 1..60), at in 0usize..60) {
            let mut index = Index::new(0);
            let mut create = [0u64; 5];
            for (i, (key, delete)) in ops.iter().enumerate() {
                let (rev, k) = (i as u64 + 2, usize::from(*key));
                create[k] = if *delete { 0 } else if create[k] == 0 { rev } else { create[k] };
                index.apply(&[*key], put(rev, create[k]));
            }
            let last = index.revision();
            let at = (at as u64 % last).max(1);
            let read = |index: &Index| -> Vec<_> { (at..=last).map(|r| index.range(b"\0", b"\0", r, None)).collect() };
            let before = read(&index);
            index.compact(at);
            prop_assert_eq!(before, read(&index));
        }
    }
}
