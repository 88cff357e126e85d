//! Resources as typed values: the v3 kinds, their keys, selectors, defaults, validation and upstream's names.
//!
//! What users write (YAML, JSON) and what datastores hold becomes one of these types at the edge; past
//! [`document::read`] and [`Resource::problems`] nobody validates again.
//! Opens no file, reads no clock, knows no datastore.

pub mod annotations;
pub mod crd;
pub mod document;
pub mod etcd_path;
pub mod key;
pub mod kind;
pub mod kubernetes;
pub mod metadata;
pub mod names;
pub mod problem;
pub mod resource;
pub mod selector;
mod shape;

mod spec;
mod value;
pub mod wrong;

pub use key::Key;
pub use kind::{Kind, UnknownKind};
pub use metadata::{Metadata, OwnerReference};
pub use problem::{FieldProblem, Problem};
pub use resource::*;
pub use selector::{Labels, Selector, SelectorError};
pub use spec::*;
pub use value::{AsNumber, Dscp, Duration, Order, Port, Protocol};
pub use wrong::Wrong;
