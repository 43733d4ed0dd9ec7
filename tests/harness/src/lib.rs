// SPDX-License-Identifier: Apache-2.0
//! Placeholder replaced by the first real commit of this crate.
