// SPDX-License-Identifier: Apache-2.0
//! The ways to one peer. It may have several network cards, and so may we: one way is in use, others are known.
//!
//! The way in use is where the peer was heard, and it stays so while the peer is heard there: two ways that take turns
//! change nothing. Another one takes over when the one in use has gone silent, or when it answers and that one does not.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use super::Path;
use crate::consts::ways::*;
use crate::wire::needs_interface;

#[derive(Clone, Copy, Debug)]
struct Way {
    path: Path,
    /// When the peer was last heard on it.
    heard: Option<Duration>,
    /// Whether the peer signed it, or was heard there before this boot.
    named: bool,
}

impl Way {
    /// Whether only a beacon says so.
    fn is_hint(&self) -> bool {
        self.heard.is_none() && !self.named
    }
}

/// All ways to one peer; the first is the one in use, once the peer was heard.
#[derive(Debug, Default)]
pub(super) struct Paths {
    ways: Vec<Way>,
    in_use: bool,
}

impl Paths {
    /// The way in use.
    pub(super) fn current(&self) -> Option<Path> {
        self.ways.first().filter(|_| self.in_use).map(|way| way.path)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ways.is_empty()
    }

    /// Whether there is another way than the one in use.
    pub(super) fn has_choice(&self) -> bool {
        self.ways.len() > 1
    }

    /// The peer was heard on a path. Gives whether anything is reached another way than before: that is now the way in
    /// use, or the card for its address is another.
    pub(super) fn heard(&mut self, path: Path, now: Duration) -> bool {
        let silent = !self.in_use
            || self.ways.first().and_then(|way| way.heard).is_none_or(|heard| now >= heard + SILENT_AFTER);
        self.note(path, now, silent)
    }

    /// The peer answered on a path what we asked on it: it is the way in use. Gives whether anything is reached another way
    /// than before.
    pub(super) fn answered(&mut self, path: Path, now: Duration) -> bool {
        self.note(path, now, true)
    }

    fn note(&mut self, path: Path, now: Duration, use_it: bool) -> bool {
        let card = self.nearest(path.address.ip());
        let at = self.position(path);
        self.ways[at].heard = Some(now);
        let moved = use_it && self.put_first(at);
        moved || self.nearest(path.address.ip()) != card
    }

    /// Every link-local address that the peer was heard from, by the card that leads there.
    pub(super) fn link_local(&self) -> impl Iterator<Item = Path> {
        let leads = |way: &&Way| self.nearest(way.path.address.ip()) == Some(way.path);
        self.ways.iter().filter(leads).map(|way| way.path)
    }

    /// How a link-local address is reached: as is in use, else where it was heard last.
    fn nearest(&self, address: IpAddr) -> Option<Path> {
        let ways = self.ways.iter().enumerate();
        let heard = ways.filter(|(_, way)| {
            needs_interface(&way.path.address) && way.path.address.ip() == address && way.heard.is_some()
        });
        let best = heard.max_by_key(|(at, way)| (*at == 0 && self.in_use, way.heard, Reverse(*at)));
        best.map(|(_, way)| way.path)
    }

    /// Adds a path that a beacon told, to try before others of which no more is known.
    pub(super) fn suggest(&mut self, path: Path) {
        let way = match self.ways.iter().position(|way| way.path == path) {
            Some(at) if self.ways[at].heard.is_some() => return,
            Some(at) => self.ways.remove(at),
            None => {
                self.make_room_for_hint();
                Way { path, heard: None, named: false }
            }
        };
        let after = self.ways.iter().take_while(|way| way.heard.is_some()).count();
        self.ways.insert(after, way);
    }

    /// Adds a path that a beacon told, to try after all others, if there is room.
    pub(super) fn suggest_last(&mut self, path: Path) {
        let room = self.ways.len() < MAX_WAYS && self.hints() < MAX_HINTS;
        if room && self.ways.iter().all(|way| way.path != path) {
            self.ways.push(Way { path, heard: None, named: false });
        }
    }

    /// Adds a path that the peer's record or our memory names, to try after all others. Hints make room as far as they have more
    /// than their share.
    pub(super) fn name(&mut self, path: Path) {
        if let Some(way) = self.ways.iter_mut().find(|way| way.path == path) {
            way.named = true;
            return;
        }
        if self.ways.len() >= MAX_WAYS {
            let hint = self.ways.iter().rposition(Way::is_hint);
            let Some(hint) = hint.filter(|_| self.ways.len() - self.hints() < MAX_WAYS - MAX_HINTS) else {
                return;
            };
            self.ways.remove(hint);
        }
        self.ways.push(Way { path, heard: None, named: true });
    }

    fn hints(&self) -> usize {
        self.ways.iter().filter(|way| way.is_hint()).count()
    }

    /// The path for an attempt: the one in use, then the others in turn.
    pub(super) fn in_turn(&self, attempt: u32) -> Option<Path> {
        (!self.ways.is_empty()).then(|| self.ways[attempt as usize % self.ways.len()].path)
    }

    pub(super) fn len(&self) -> usize {
        self.ways.len()
    }

    /// Where the peer is, as far as is known. What only a beacon says is not known.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.ways.iter().filter(|way| !way.is_hint()).map(|way| way.path.address.ip())
    }

    /// Whether the peer was heard on a path.
    pub(super) fn is_heard_on(&self, path: Path) -> bool {
        self.ways.iter().any(|way| way.path == path && way.heard.is_some())
    }

    /// The paths to ask on when the way in use gives no answer; it is asked again too.
    pub(super) fn to_ask(&self) -> impl Iterator<Item = Path> {
        self.ways.iter().take(MAX_ASKED).map(|way| way.path)
    }

    /// Forgets ways through interfaces that are gone. If the one in use was among them, the one heard last takes its place.
    /// Gives whether the peer had been heard on any of them.
    pub(super) fn keep_interfaces(&mut self, there: &BTreeSet<u32>) -> bool {
        let before = self.current();
        let heard = |ways: &[Way]| ways.iter().filter(|way| way.heard.is_some()).count();
        let known = heard(&self.ways);
        self.ways.retain(|way| way.path.interface == 0 || there.contains(&way.path.interface));
        if before.is_none() || self.ways.first().map(|way| way.path) == before {
            return heard(&self.ways) != known;
        }
        self.in_use = false;
        let newest = (0..self.ways.len()).filter(|at| self.ways[*at].heard.is_some());
        if let Some(at) = newest.max_by_key(|at| self.ways[*at].heard) {
            self.put_first(at);
        }
        true
    }

    pub(super) fn all(&self) -> impl Iterator<Item = Path> {
        self.ways.iter().map(|way| way.path)
    }

    /// Forgets some paths, the one in use too.
    pub(super) fn forget(&mut self, gone: impl Fn(Path) -> bool) {
        let before = self.current();
        self.ways.retain(|way| !gone(way.path));
        self.in_use = before.is_some() && self.ways.first().map(|way| way.path) == before;
    }

    fn position(&mut self, path: Path) -> usize {
        if let Some(at) = self.ways.iter().position(|way| way.path == path) {
            return at;
        }
        self.make_room();
        self.ways.push(Way { path, heard: None, named: false });
        self.ways.len() - 1
    }

    /// For a way on which the peer is heard: hints give way first, then what was only named, then what was heard longest ago. But
    /// who sends on what a peer says can have it heard anywhere: half of the ways are left to what is named.
    fn make_room(&mut self) {
        if self.ways.len() >= MAX_WAYS {
            let heard = self.ways.iter().filter(|way| way.heard.is_some()).count();
            let rank = |way: &Way| match way.heard {
                _ if way.is_hint() => 0,
                None if heard < MAX_WAYS - MAX_HINTS => 1,
                Some(_) => 2,
                None => 3,
            };
            let others = usize::from(self.in_use)..self.ways.len();
            let least = others.rev().min_by_key(|at| (rank(&self.ways[*at]), self.ways[*at].heard));
            if let Some(least) = least {
                self.ways.remove(least);
            }
        }
    }

    /// Hints push out each other once they have their share, and until then what was only named and has more than its own.
    fn make_room_for_hint(&mut self) {
        let hints = self.hints();
        if hints < MAX_HINTS && self.ways.len() < MAX_WAYS {
            return;
        }
        let only_named = |way: &Way| way.named && way.heard.is_none();
        let named = if hints < MAX_HINTS { self.ways.iter().rposition(only_named) } else { None };
        match named.or_else(|| self.ways.iter().rposition(Way::is_hint)) {
            Some(at) => drop(self.ways.remove(at)),
            None => self.make_room(),
        }
    }

    fn put_first(&mut self, at: usize) -> bool {
        let moved = at != 0 || !self.in_use;
        let way = self.ways.remove(at);
        self.ways.insert(0, way);
        self.in_use = true;
        moved
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV6;

    use super::*;
    use proptest::prelude::*;

    fn path(n: u8) -> Path {
        Path { address: ([10, 0, 0, n], 41410).into(), interface: u32::from(n % 3) }
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn two_ways_that_take_turns_change_nothing() {
        let mut paths = Paths::default();
        assert!(paths.heard(path(1), ms(0)));
        for n in 1..100 {
            assert!(!paths.heard(path(1 + (n % 2) as u8), ms(500 * n)));
        }
        assert_eq!(paths.current(), Some(path(1)));
    }

    #[test]
    fn silence_gives_way_to_where_the_peer_is_heard() {
        let mut paths = Paths::default();
        paths.heard(path(1), ms(0));
        assert!(!paths.heard(path(2), ms(900)));
        assert!(paths.heard(path(2), ms(1000)));
        assert_eq!(paths.current(), Some(path(2)));
        assert!(paths.answered(path(1), ms(1001)), "an answer wins at once");
    }

    #[test]
    fn an_interface_that_is_gone_takes_its_ways_with_it() {
        let mut paths = Paths::default();
        paths.heard(path(2), ms(0));
        paths.answered(path(1), ms(10));
        paths.suggest(path(4));
        assert!(!paths.keep_interfaces(&[1, 2].into()));
        assert!(paths.keep_interfaces(&[2].into()));
        assert_eq!(paths.current(), Some(path(2)));
        assert_eq!(paths.to_ask().collect::<Vec<_>>(), [path(2)]);
        assert!(paths.keep_interfaces(&[1].into()));
        assert_eq!(paths.current(), None);
    }

    #[test]
    fn a_path_that_is_forgotten_is_in_use_no_more() {
        let mut paths = Paths::default();
        paths.suggest_last(path(3));
        paths.forget(|gone| gone == path(3));
        assert!(paths.is_empty() && paths.current().is_none());
        paths.heard(path(1), ms(0));
        paths.suggest_last(path(2));
        paths.forget(|gone| gone == path(2));
        assert_eq!(paths.current(), Some(path(1)));
        paths.suggest_last(path(2));
        paths.forget(|gone| gone == path(1));
        assert_eq!((paths.current(), paths.in_turn(0)), (None, Some(path(2))));
    }

    #[test]
    fn a_link_local_address_leads_where_it_is_in_use_else_where_it_was_heard_last() {
        let on = |host: u16, interface: u32| Path {
            address: SocketAddrV6::new([0xfe80, 0, 0, 0, 0, 0, 0, host].into(), 41410, 0, interface).into(),
            interface,
        };
        let known = |paths: &Paths| paths.link_local().collect::<BTreeSet<_>>();
        let mut paths = Paths::default();
        paths.suggest(on(9, 1));
        assert!(paths.heard(on(1, 1), ms(0)));
        assert!(paths.heard(on(2, 1), ms(1)), "an address that was not heard before");
        assert!(!paths.heard(on(1, 2), ms(2)), "it is in use on the other card");
        assert!(!paths.heard(on(2, 1), ms(3)));
        assert!(paths.heard(on(2, 2), ms(4)), "it leads through the other card now");
        assert_eq!(known(&paths), [on(1, 1), on(2, 2)].into());
        assert!(paths.answered(on(2, 1), ms(5)));
        assert_eq!(known(&paths), [on(1, 2), on(2, 1)].into());
        assert!(paths.keep_interfaces(&[1].into()), "its first address was heard on the other card last");
        assert_eq!(known(&paths), [on(1, 1), on(2, 1)].into());
        paths.heard(path(3), ms(6));
        assert_eq!(known(&paths).len(), 2, "other addresses are routed by the kernel");
    }

    #[test]
    fn attempts_try_where_it_was_heard_first_and_the_newest_hint_next() {
        let mut paths = Paths::default();
        paths.suggest_last(path(5));
        paths.suggest(path(6));
        assert_eq!(paths.current(), None);
        paths.heard(path(7), ms(1));
        let tried: Vec<_> = (0..4).filter_map(|attempt| paths.in_turn(attempt)).collect();
        assert_eq!(tried, [path(7), path(6), path(5), path(7)]);
    }

    #[test]
    fn hints_leave_half_of_the_ways_to_what_is_heard_or_named() {
        let mut paths = Paths::default();
        let hint = |paths: &mut Paths| {
            for n in 0..100 {
                paths.suggest_last(path(n));
                paths.suggest(path(n));
            }
        };
        let has = |paths: &Paths, path: Path| paths.all().any(|known| known == path);
        hint(&mut paths);
        assert_eq!(paths.len(), MAX_HINTS);
        assert_eq!(paths.addresses().count(), 0, "nobody was heard there");
        (200..204).for_each(|n| paths.name(path(n)));
        hint(&mut paths);
        assert!((200..204).all(|n| has(&paths, path(n))), "{paths:?}");
        assert_eq!(paths.addresses().count(), 4);
        // More that are named do not take the place of hints, which may be where it is now.
        (204..212).for_each(|n| paths.name(path(n)));
        assert_eq!((paths.len(), paths.hints()), (MAX_WAYS, MAX_HINTS));
        let mut paths = Paths::default();
        (200..208).for_each(|n| paths.name(path(n)));
        hint(&mut paths);
        assert_eq!((paths.len(), paths.hints()), (MAX_WAYS, MAX_HINTS));
        paths.heard(path(99), ms(1));
        assert_eq!(paths.hints(), MAX_HINTS - 1);
    }

    proptest! {
        #[test]
        fn hints_never_push_out_what_was_heard(hints: Vec<u8>, heard in 0u8..7) {
            let mut paths = Paths::default();
            for n in 0..=heard {
                paths.heard(path(200 + n), ms(u64::from(n)));
            }
            for hint in hints {
                paths.suggest(path(hint % 200));
                prop_assert!(paths.len() <= MAX_WAYS);
            }
            prop_assert_eq!(paths.current(), Some(path(200)));
            let asked: BTreeSet<_> = paths.ways.iter().map(|way| way.path).collect();
            prop_assert!((0..=heard).all(|n| asked.contains(&path(200 + n))));
        }
    }
}
