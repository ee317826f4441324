//! A built-in kind's schema in one version: its type in the catalogue.

use pilothouse_apimachinery::version::Release;

use crate::catalogue::{Catalogue, Element, Field, Shape, Type};

/// A type and the catalogue it is in. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// The catalogue.
    pub catalogue: &'static Catalogue,
    /// The type of the object.
    pub type_: &'static Type,
}

impl Schema {
    /// The schema of a kind.
    pub fn of(release: Release, group: &str, version: &str, kind: &str) -> Option<Schema> {
        let catalogue = Catalogue::of(release);
        catalogue.kind(group, version, kind).map(|type_| Schema { catalogue, type_ })
    }

    /// The schema of a type of `meta/v1`, such as `DeleteOptions`.
    pub fn meta(release: Release, name: &str) -> Option<Schema> {
        let catalogue = Catalogue::of(release);
        catalogue.meta(name).map(|type_| Schema { catalogue, type_ })
    }

    /// The field at a path of field names; items of lists and values of maps need no name.
    pub fn field(&self, path: &[&str]) -> Option<&'static Field> {
        let (last, parents) = path.split_last()?;
        let mut type_ = self.type_;
        for name in parents {
            type_ = self.struct_of(type_.field(name)?.shape)?;
        }
        type_.field(last)
    }

    /// The struct that a field holds: itself, or in its list or map.
    pub fn struct_of(&self, shape: Shape) -> Option<&'static Type> {
        match shape {
            Shape::Struct(id) | Shape::List(Element::Struct(id)) | Shape::Map(Element::Struct(id)) => {
                Some(self.catalogue.get(id))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields() {
        let pod = Schema::of(Release::V1_20, "", "v1", "Pod").unwrap();
        assert_eq!(pod.field(&["spec", "containers", "ports"]).unwrap().patch_merge_key, "containerPort");
        assert!(pod.field(&["spec", "nope"]).is_none());
        assert!(Schema::meta(Release::V1_20, "DeleteOptions").is_some());
    }
}
