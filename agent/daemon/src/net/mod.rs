// SPDX-License-Identifier: Apache-2.0
//! The physical network: which interfaces there are, datagrams and streams over them.

pub mod interfaces;
pub mod tcp;
pub mod udp;
