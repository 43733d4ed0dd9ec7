// SPDX-License-Identifier: Apache-2.0
//! Members that announced what they did not give. Whoever can write a record can announce any version, and the newest is what a
//! node wants: asked again each time, one such member would hold every update up. So it is remembered for a while, and only
//! where no version was asked for by name.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use crate::sources::{Fault, Source};

/// Who gave what no key has signed is not asked again for so long.
const LIED: Duration = Duration::from_secs(3600);
/// Who was gone, stalled or slow may be itself in the middle of an update.
const FAILED: Duration = Duration::from_secs(600);
/// More are not kept; those that would be forgotten first make room.
const MAX: usize = 256;

/// Who is doubted, and until when. `now` is the time since any fixed moment.
#[derive(Clone, Debug, Default)]
pub struct Doubts(BTreeMap<SocketAddr, (Duration, Fault)>);

impl Doubts {
    /// What is wrong with this member, if that is still remembered.
    #[must_use]
    pub fn of(&self, member: SocketAddr, now: Duration) -> Option<Fault> {
        self.0.get(&member).filter(|(until, _)| *until > now).map(|(_, fault)| *fault)
    }

    /// Nobody gave the release: each that was asked for it is doubted.
    pub fn gave_nothing(&mut self, sources: &[Source], now: Duration) {
        for source in sources {
            if let Some(fault) = source.fault {
                self.note(source.holder.address, fault, now);
            }
        }
    }

    /// Somebody gave it: only liars are doubted, and whoever gave something no longer is.
    pub fn gave(&mut self, sources: &[Source], now: Duration) {
        for source in sources {
            match source.fault {
                Some(Fault::Lied) => self.note(source.holder.address, Fault::Lied, now),
                _ if source.bytes > 0 => drop(self.0.remove(&source.holder.address)),
                _ => {}
            }
        }
    }

    fn note(&mut self, member: SocketAddr, fault: Fault, now: Duration) {
        let until = now + if fault == Fault::Lied { LIED } else { FAILED };
        // A liar that is merely gone the next time is a liar still.
        if self.0.get(&member).is_some_and(|(known, _)| *known > until) {
            return;
        }
        self.0.insert(member, (until, fault));
        while self.0.len() > MAX {
            let first = self.0.iter().min_by_key(|(_, (until, _))| *until).map(|(member, _)| *member);
            first.and_then(|first| self.0.remove(&first));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        sources::{Holder, Patience, Prefix, Sources},
        version::Version,
    };

    const ZERO: Duration = Duration::ZERO;

    fn address(number: u16) -> SocketAddr {
        SocketAddr::from(([0xfdc1, 0x505, 0, 0, 0, 0, 0, number], 1))
    }

    fn source(number: u16, fault: Option<Fault>, bytes: u64) -> Source {
        let holder = Holder {
            name: String::new(),
            address: address(number),
            version: Version::parse("1").unwrap(),
            prefix: Prefix([1; 8]),
        };
        let mut sources = Sources::new([holder], 0, Patience::LONG);
        if let Some(fault) = fault {
            sources.failed(fault, "", ZERO, 0);
        }
        if bytes > 0 {
            sources.delivered(bytes, ZERO, ZERO);
        }
        sources.all()[0].clone()
    }

    #[test]
    fn a_liar_is_remembered_longer_than_one_that_was_gone() {
        let mut doubts = Doubts::default();
        let (liar, gone, good) =
            (source(1, Some(Fault::Lied), 0), source(2, Some(Fault::Gone), 0), source(3, None, 0));
        doubts.gave_nothing(&[liar, gone, good], ZERO);
        let at = |doubts: &Doubts, now| [1, 2, 3].map(|number| doubts.of(address(number), now));
        assert_eq!(at(&doubts, ZERO), [Some(Fault::Lied), Some(Fault::Gone), None]);
        assert_eq!(at(&doubts, FAILED), [Some(Fault::Lied), None, None]);
        assert_eq!(at(&doubts, LIED), [None; 3]);
        // Being gone does not make good for a lie.
        doubts.gave_nothing(&[source(1, Some(Fault::Gone), 0)], ZERO);
        assert_eq!(doubts.of(address(1), FAILED), Some(Fault::Lied));
    }

    #[test]
    fn who_gives_what_it_announces_is_doubted_no_more() {
        let mut doubts = Doubts::default();
        doubts.gave_nothing(&[source(1, Some(Fault::Gone), 0), source(2, Some(Fault::Slow), 0)], ZERO);
        doubts.gave(&[source(1, None, 4096), source(2, None, 0), source(3, Some(Fault::Lied), 9)], ZERO);
        let left = [1, 2, 3].map(|number| doubts.of(address(number), ZERO));
        assert_eq!(left, [None, Some(Fault::Slow), Some(Fault::Lied)]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut doubts = Doubts::default();
        for number in 0..2000 {
            let now = Duration::from_secs(number.into());
            doubts.gave_nothing(&[source(number, Some(Fault::Gone), 0)], now);
        }
        assert_eq!(doubts.0.len(), MAX);
        assert!(doubts.of(address(1999), Duration::from_secs(1999)).is_some());
    }
}
