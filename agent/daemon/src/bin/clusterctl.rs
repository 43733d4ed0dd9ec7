// SPDX-License-Identifier: Apache-2.0
//! Filled next.
fn main() {}
