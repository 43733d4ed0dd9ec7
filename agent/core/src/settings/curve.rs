// SPDX-License-Identifier: Apache-2.0
//! Whether a point lies on one of the NIST curves that SSH has (FIPS 186-4, appendix D.1.2): y² = x³ − 3x + b modulo p.
//! Public keys only: nothing here need take the same time for all of them.

use num_bigint::BigUint;

/// First byte of a point whose both coordinates follow (SEC 1, section 2.3.3); OpenSSH takes no other form.
const UNCOMPRESSED: u8 = 4;

/// A curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
    P521,
}

impl Curve {
    /// Its name in SSH.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::P256 => "nistp256",
            Self::P384 => "nistp384",
            Self::P521 => "nistp521",
        }
    }

    fn bits(self) -> usize {
        match self {
            Self::P256 => 256,
            Self::P384 => 384,
            Self::P521 => 521,
        }
    }

    /// p and b.
    fn parameters(self) -> Option<(BigUint, BigUint)> {
        let (p, b): (&[u8], &[u8]) = match self {
            Self::P256 => (
                b"ffffffff00000001000000000000000000000000ffffffffffffffffffffffff",
                b"5ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b",
            ),
            Self::P384 => (
                b"fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffeffffffff0000000000000000ffffffff",
                b"b3312fa7e23ee7e4988e056be3f82d19181d9c6efe8141120314088f5013875ac656398d8a2ed19d2a85c8edd3ec2aef",
            ),
            Self::P521 => (
                b"1ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
                b"51953eb9618e1c9a1f929a21a0b68540eea2da725b99b315f3b8b489918ef109e156193951ec7e937b1652c0bd3bb1bf073573df883d2c34f1ef451fd46b503f00",
            ),
        };
        Some((BigUint::parse_bytes(p, 16)?, BigUint::parse_bytes(b, 16)?))
    }

    /// Whether `point` is one of its points, in the form that OpenSSH takes, and one that OpenSSH takes (sshkey_ec_validate_public).
    pub(super) fn has(self, point: &[u8]) -> bool {
        let length = self.bits().div_ceil(8);
        let (Some((&UNCOMPRESSED, coordinates)), Some((p, b))) = (point.split_first(), self.parameters())
        else {
            return false;
        };
        if coordinates.len() != 2 * length {
            return false;
        }
        let (x, y) = coordinates.split_at(length);
        let (x, y) = (BigUint::from_bytes_be(x), BigUint::from_bytes_be(y));
        let large = |number: &BigUint| *number < p && number.bits() > self.bits() as u64 / 2;
        // Minus three, without negative numbers.
        let a = &p - 3u32;
        large(&x) && large(&y) && &y * &y % &p == (&x * &x * &x + a * &x + b) % &p
    }
}
