// SPDX-License-Identifier: Apache-2.0
//! A list with one value for each variant of an enum, for tests that must not forget one.

/// `one_of_each!(Enum: pattern => value, …)`: the values, as an array. It does not compile while a variant has no line.
macro_rules! one_of_each {
    ($of:ty: $($variant:pat => $value:expr),+ $(,)?) => {{
        // Never called: it makes the compiler compare the patterns with the enum.
        #[deny(unreachable_patterns)]
        let _each_variant = |value: &$of| match value {
            $($variant => {}),+
        };
        [$($value),+]
    }};
}

pub(crate) use one_of_each;
