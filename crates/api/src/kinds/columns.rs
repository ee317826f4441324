//! Table columns that many kinds share, and short ways to write the others.

use super::Column;
use crate::table::{CREATED_DESCRIPTION, NAME_DESCRIPTION};

/// `Name`, the first column of nearly every kind.
pub const NAME: Column =
    Column { name: "Name", type_: "string", format: "name", priority: 0, description: NAME_DESCRIPTION };

/// `Age`.
pub const AGE: Column = text("Age", CREATED_DESCRIPTION);

/// A column of text that is always shown.
pub const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", priority: 0, description }
}

/// A column of text that only `-o wide` shows.
pub const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", priority: 1, description }
}

/// A column of whole numbers.
pub const fn integer(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "integer", format: "", priority: 0, description }
}

/// A column of truth values.
pub const fn boolean(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "boolean", format: "", priority: 0, description }
}
