// SPDX-License-Identifier: Apache-2.0
//! The three signed objects of a roster.

use crate::id::{ClusterId, NodeId};
use crate::name::is_dns_label;
use crate::signed::Signed;
use crate::wire::{Malformed, Reader, Writer};

const POLICY_AUTO: u8 = 0;
const MAX_ADMIN_KEYS: u8 = 16;

/// Start of a cluster, signed by its founder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Grows with `recover` and `restore`, later.
    pub incarnation: u32,
    /// A DNS label, for people.
    pub name: String,
    /// Which join key it was founded under.
    pub join_key: [u8; 16],
    /// The founder's public key.
    pub founder: [u8; 32],
    /// The founder's wall clock in seconds; for people only.
    pub created: u64,
    /// Ed25519 keys that may command the cluster, later.
    pub admin_keys: Vec<[u8; 32]>,
}

impl Signed for Genesis {
    const KIND: u8 = 2;
    const WHAT: &'static str = "genesis";

    fn signer(&self) -> &[u8; 32] {
        &self.founder
    }

    fn write(&self, w: &mut Writer) {
        w.raw(&self.cluster.0).u32(self.incarnation).text(&self.name).raw(&self.join_key).raw(&self.founder);
        w.u64(self.created).u8(POLICY_AUTO).u8(self.admin_keys.len() as u8);
        for key in &self.admin_keys {
            w.raw(key);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (cluster, incarnation, name) = (ClusterId(r.array()?), r.u32()?, r.text(63)?);
        let (join_key, founder, created) = (r.array()?, r.array()?, r.u64()?);
        let (policy, count) = (r.u8()?, r.u8()?);
        if policy != POLICY_AUTO || count > MAX_ADMIN_KEYS || !is_dns_label(&name) {
            return Err(r.malformed());
        }
        let admin_keys = (0..count).map(|_| r.array()).collect::<Result<_, _>>()?;
        Ok(Self { cluster, incarnation, name, join_key, founder, created, admin_keys })
    }
}

/// One member lets another in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Public key of who is let in.
    pub subject: [u8; 32],
    /// 1 for the first time, one more after each leave.
    pub round: u32,
    /// Public key of who lets in, and signs.
    pub admitter: [u8; 32],
    /// The admitter's wall clock in seconds; for people only.
    pub at: u64,
}

impl Admission {
    /// Id of the subject.
    pub fn subject_id(&self) -> NodeId {
        NodeId::of_public_key(&self.subject)
    }

    /// Id of the admitter.
    pub fn admitter_id(&self) -> NodeId {
        NodeId::of_public_key(&self.admitter)
    }
}

impl Signed for Admission {
    const KIND: u8 = 3;
    const WHAT: &'static str = "admission";

    fn signer(&self) -> &[u8; 32] {
        &self.admitter
    }

    fn write(&self, w: &mut Writer) {
        w.raw(&self.cluster.0).raw(&self.subject).u32(self.round).raw(&self.admitter).u64(self.at);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            cluster: ClusterId(r.array()?),
            subject: r.array()?,
            round: r.u32()?,
            admitter: r.array()?,
            at: r.u64()?,
        })
    }
}

/// A member goes by its own decision. Ends all its admissions up to `round`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Public key of who goes, and signs.
    pub subject: [u8; 32],
    /// The admission that it ends, and all before.
    pub round: u32,
    /// Its wall clock in seconds; for people only.
    pub at: u64,
}

impl Leave {
    /// Id of the subject.
    pub fn subject_id(&self) -> NodeId {
        NodeId::of_public_key(&self.subject)
    }
}

impl Signed for Leave {
    const KIND: u8 = 4;
    const WHAT: &'static str = "leave";

    fn signer(&self) -> &[u8; 32] {
        &self.subject
    }

    fn write(&self, w: &mut Writer) {
        w.raw(&self.cluster.0).raw(&self.subject).u32(self.round).u64(self.at);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { cluster: ClusterId(r.array()?), subject: r.array()?, round: r.u32()?, at: r.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use crate::record::NodeRecord;
    use crate::signed::Verified;
    use proptest::prelude::*;
    use proptest::sample::Index;

    fn keys() -> Keys {
        Keys::generate(&std::array::from_fn(|i| i as u8))
    }

    fn genesis() -> Genesis {
        Genesis {
            cluster: ClusterId([1; 16]),
            incarnation: 1,
            name: "lab".into(),
            join_key: [2; 16],
            founder: keys().public(),
            created: 3,
            admin_keys: vec![[4; 32], [5; 32]],
        }
    }

    fn admission() -> Admission {
        let (subject, admitter) = ([6; 32], keys().public());
        Admission { cluster: ClusterId([1; 16]), subject, round: 1, admitter, at: 3 }
    }

    fn leave() -> Leave {
        Leave { cluster: ClusterId([1; 16]), subject: keys().public(), round: 1, at: 3 }
    }

    #[test]
    fn each_kind_has_a_number_of_its_own() {
        let kinds = [NodeRecord::KIND, Genesis::KIND, Admission::KIND, Leave::KIND];
        assert_eq!(std::collections::BTreeSet::from(kinds).len(), kinds.len());
        let bytes = Verified::sign(admission(), &keys()).as_bytes().to_vec();
        assert!(Verified::<Leave>::open(&bytes).is_err() && Verified::<Admission>::open(&bytes).is_ok());
    }

    /// Changes fields, signs them rightly, and reads: taken exactly when the fields are sound and name the signer.
    fn judged_by_its_fields<T: Signed>(value: &T, changes: &[(Index, u8)]) -> Result<(), TestCaseError> {
        let mut w = Writer::new();
        value.write(&mut w);
        let mut fields = w.finish();
        for (at, byte) in changes {
            let at = at.index(fields.len());
            fields[at] = *byte;
        }
        let mut r = Reader::new("test", &fields);
        let sound =
            T::read(&mut r).is_ok_and(|value| *value.signer() == keys().public()) && r.remaining() == 0;
        prop_assert!(sound || !changes.is_empty(), "the object itself is sound");
        let opened = Verified::<T>::open(&Verified::<T>::sign_bytes(&fields, &keys()));
        prop_assert_eq!(opened.is_ok(), sound);
        if let Ok(value) = opened {
            let mut w = Writer::new();
            value.write(&mut w);
            prop_assert_eq!(w.finish(), fields);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn a_right_signature_makes_no_field_sound(
            changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..3),
        ) {
            judged_by_its_fields(&genesis(), &changes)?;
            judged_by_its_fields(&admission(), &changes)?;
            judged_by_its_fields(&leave(), &changes)?;
        }
    }
}
