//! Texts and labels as they are read: straight into what is kept, without anything in between.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use crate::policy::object::{Labels, Text};

/// A text that many will share.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shared(pub Text);

impl<'de> Deserialize<'de> for Shared {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SharedVisitor)
    }
}

struct SharedVisitor;

impl Visitor<'_> for SharedVisitor {
    type Value = Shared;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Shared, E> {
        Ok(Shared(Text::from(text)))
    }

    // What Go writes for a text that is not there.
    fn visit_unit<E>(self) -> Result<Shared, E> {
        Ok(Shared::default())
    }
}

/// `metadata.labels`: sorted, each key once.
///
/// # Errors
/// Something else than texts by keys.
pub fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Labels, D::Error> {
    deserializer.deserialize_any(LabelsVisitor)
}

struct LabelsVisitor;

impl<'de> Visitor<'de> for LabelsVisitor {
    type Value = Labels;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("labels")
    }

    fn visit_unit<E>(self) -> Result<Labels, E> {
        Ok(Labels::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
        let mut labels = Vec::with_capacity(map.size_hint().unwrap_or(8));
        while let Some((Shared(key), value)) = map.next_entry::<Shared, Option<Shared>>()? {
            labels.push((key, value.unwrap_or_default().0));
        }
        // Of one key twice the last counts, as it does for the server.
        labels.reverse();
        labels.sort_by(|(one, _), (other, _)| one.cmp(other));
        labels.dedup_by(|(one, _), (other, _)| one == other);
        Ok(Labels(labels.into()))
    }
}

/// The default where Go writes `null`.
///
/// # Errors
/// Whatever the type has.
pub fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
