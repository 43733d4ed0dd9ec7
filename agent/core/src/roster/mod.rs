// SPDX-License-Identifier: Apache-2.0
//! Who belongs to the cluster: a [`Genesis`], and a set of signed admissions and leaves that only grows.
//!
//! Two rosters of one cluster unite by union, whatever the order; who is a member follows from the set alone. An admission
//! counts when its admitter is admitted itself, in the end by the founder.

mod set;

pub(crate) use cluster_agent_proto::roster::{Admission, Genesis, Leave};
pub(crate) use set::{Learned, Object, ObjectPlace, Roster, Standing, Union};
