// SPDX-License-Identifier: Apache-2.0
//! foca's headers and members in our encoding.

use foca::{Codec, Header, Member, Message, State};

use super::GossipId;
use crate::consts::WIRE_VERSION;
use crate::id::NodeId;
use crate::signed::ObjectDigest;
use crate::view::MemberState;
use crate::wire::{Malformed, Reader, Writer};

/// A member's liveness as it stands in push-pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Liveness {
    pub(crate) id: GossipId,
    pub(crate) incarnation: u16,
    pub(crate) state: State,
}

impl Liveness {
    /// A node that is there and was not declared down in this boot, to our knowledge.
    pub(crate) fn since_boot(node: NodeId, generation: u32) -> Self {
        Self { id: GossipId { node, generation, bump: 0 }, incarnation: 0, state: State::Alive }
    }
}

/// Bytes of one [`Liveness`].
pub(crate) const LIVENESS: usize = 43;

impl Liveness {
    pub(super) fn of(member: &Member<GossipId>) -> Self {
        Self { id: *member.id(), incarnation: member.incarnation(), state: member.state() }
    }

    /// Its state as people are shown it.
    pub(crate) fn shown(&self) -> MemberState {
        match self.state {
            State::Alive => MemberState::Up,
            State::Suspect => MemberState::Suspect,
            State::Down => MemberState::Down,
        }
    }

    pub(crate) fn write(&self, w: &mut Writer) {
        write_id(w, &self.id);
        w.u16(self.incarnation).u8(match self.state {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
    }

    /// Names what all should agree on. Incarnations only refute suspicions, so they do not count. A suspicion does: one that
    /// outlived its timer (a node that is declared down itself forgets its timers) ends only when the suspect hears of it.
    pub(crate) fn digest(&self) -> ObjectDigest {
        let mut w = Writer::new();
        write_id(&mut w, &self.id);
        let state = match self.state {
            State::Alive => 0,
            State::Down => 1,
            State::Suspect => 2,
        };
        ObjectDigest::of(&w.u8(state).finish())
    }

    pub(crate) fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (id, incarnation) = (read_id(r)?, r.u16()?);
        let state = match r.u8()? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(r.malformed()),
        };
        Ok(Self { id, incarnation, state })
    }
}

fn write_id(w: &mut Writer, id: &GossipId) {
    w.raw(&id.node.0).u32(id.generation).u32(id.bump);
}

fn read_id(r: &mut Reader<'_>) -> Result<GossipId, Malformed> {
    Ok(GossipId { node: NodeId(r.array()?), generation: r.u32()?, bump: r.u32()? })
}

fn write_header(w: &mut Writer, header: &Header<GossipId>) {
    w.u8(WIRE_VERSION);
    write_id(w, &header.src);
    w.u16(header.src_incarnation);
    write_id(w, &header.dst);
    match &header.message {
        Message::Ping(number) => w.u8(1).u8(*number),
        Message::Ack(number) => w.u8(2).u8(*number),
        Message::PingReq { target, probe_number } => with_id(w.u8(3), target).u8(*probe_number),
        Message::IndirectPing { origin, probe_number } => with_id(w.u8(4), origin).u8(*probe_number),
        Message::IndirectAck { target, probe_number } => with_id(w.u8(5), target).u8(*probe_number),
        Message::ForwardedAck { origin, probe_number } => with_id(w.u8(6), origin).u8(*probe_number),
        Message::Announce => w.u8(7),
        Message::Feed => w.u8(8),
        Message::Gossip => w.u8(9),
        Message::Broadcast => w.u8(10),
        Message::TurnUndead => w.u8(11),
    };
}

fn with_id<'w>(w: &'w mut Writer, id: &GossipId) -> &'w mut Writer {
    write_id(w, id);
    w
}

fn read_header(r: &mut Reader<'_>) -> Result<Header<GossipId>, Malformed> {
    if r.u8()? != WIRE_VERSION {
        return Err(r.malformed());
    }
    let (src, src_incarnation, dst) = (read_id(r)?, r.u16()?, read_id(r)?);
    let message = match r.u8()? {
        1 => Message::Ping(r.u8()?),
        2 => Message::Ack(r.u8()?),
        3 => Message::PingReq { target: read_id(r)?, probe_number: r.u8()? },
        4 => Message::IndirectPing { origin: read_id(r)?, probe_number: r.u8()? },
        5 => Message::IndirectAck { target: read_id(r)?, probe_number: r.u8()? },
        6 => Message::ForwardedAck { origin: read_id(r)?, probe_number: r.u8()? },
        7 => Message::Announce,
        8 => Message::Feed,
        9 => Message::Gossip,
        10 => Message::Broadcast,
        11 => Message::TurnUndead,
        _ => return Err(r.malformed()),
    };
    Ok(Header { src, src_incarnation, dst, message })
}

/// What has to be known of a packet around foca.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Envelope {
    /// Who it claims to be from.
    pub(crate) source: GossipId,
    /// Whom it is for.
    pub(crate) destination: GossipId,
    pub(crate) probe: Probe,
    /// Whether it only carries news, which any member may hear as well as the one it is for.
    pub(crate) news: bool,
    /// Whether it tells its receiver that it was declared down.
    pub(crate) undead: bool,
    /// Whether a list of members follows the header.
    members: bool,
    /// Size of its header.
    pub(crate) header: usize,
}

/// Whether a packet belongs to a direct probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    Ping(u8),
    Ack(u8),
    Neither,
}

/// Reads the header of a packet.
pub(crate) fn envelope(packet: &[u8]) -> Result<Envelope, Malformed> {
    let mut r = Reader::new("gossip", packet);
    let header = read_header(&mut r)?;
    let probe = match header.message {
        Message::Ping(number) => Probe::Ping(number),
        Message::Ack(number) => Probe::Ack(number),
        _ => Probe::Neither,
    };
    let members = header.message != Message::Broadcast;
    let news = header.message == Message::Gossip;
    let undead = header.message == Message::TurnUndead;
    let (source, destination) = (header.src, header.dst);
    Ok(Envelope { source, destination, probe, news, undead, members, header: packet.len() - r.remaining() })
}

/// The packet in which a member answers our ping and says nothing else.
pub(crate) fn acknowledgement(from: GossipId, incarnation: u16, to: GossipId, number: u8) -> Vec<u8> {
    let mut w = Writer::new();
    let message = Message::Ack(number);
    write_header(&mut w, &Header { src: from, src_incarnation: incarnation, dst: to, message });
    w.finish()
}

/// The packet, for another receiver.
pub(crate) fn readdressed(packet: &[u8], to: GossipId) -> Result<Vec<u8>, Malformed> {
    let mut r = Reader::new("gossip", packet);
    let header = Header { dst: to, ..read_header(&mut r)? };
    let mut w = Writer::new();
    write_header(&mut w, &header);
    Ok(w.raw(r.rest()).finish())
}

/// The objects that ride on a packet.
pub(crate) fn objects<'p>(packet: &'p [u8], envelope: &Envelope) -> Result<Vec<&'p [u8]>, Malformed> {
    let mut r = Reader::new("gossip", &packet[envelope.header..]);
    if envelope.members && r.remaining() > 0 {
        let members = usize::from(r.u16()?);
        r.take(members * LIVENESS)?;
    }
    let mut objects = Vec::new();
    while r.remaining() > 0 {
        objects.push(r.bytes(packet.len())?);
    }
    Ok(objects)
}

/// The packet with only those of its members that are `wanted`.
pub(crate) fn only(
    packet: &[u8],
    envelope: &Envelope,
    mut wanted: impl FnMut(&Liveness) -> bool,
) -> Result<Vec<u8>, Malformed> {
    let (header, body) = packet.split_at(envelope.header);
    if body.is_empty() || !envelope.members {
        return Ok(packet.to_vec());
    }
    let mut r = Reader::new("gossip", body);
    let mut kept = Vec::new();
    for _ in 0..r.u16()? {
        let member = r.take(LIVENESS)?;
        if wanted(&Liveness::read(&mut Reader::new("gossip", member))?) {
            kept.push(member);
        }
    }
    let mut w = Writer::new();
    w.raw(header).u16(kept.len() as u16);
    for member in kept {
        w.raw(member);
    }
    Ok(w.raw(r.rest()).finish())
}

/// foca's view of our encoding.
#[derive(Clone, Copy)]
pub(crate) struct GossipCodec;

impl GossipCodec {
    fn put(bytes: &[u8], mut buf: impl bytes::BufMut) -> Result<(), Malformed> {
        if buf.remaining_mut() < bytes.len() {
            return Err(Malformed("gossip buffer"));
        }
        buf.put_slice(bytes);
        Ok(())
    }

    fn get<T>(
        mut buf: impl bytes::Buf,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        let chunk = buf.chunk();
        let mut r = Reader::new("gossip", chunk);
        let value = read(&mut r)?;
        let used = chunk.len() - r.remaining();
        buf.advance(used);
        Ok(value)
    }
}

impl Codec<GossipId> for GossipCodec {
    type Error = Malformed;

    fn encode_header(&mut self, header: &Header<GossipId>, buf: impl bytes::BufMut) -> Result<(), Malformed> {
        let mut w = Writer::new();
        write_header(&mut w, header);
        Self::put(&w.finish(), buf)
    }

    fn decode_header(&mut self, buf: impl bytes::Buf) -> Result<Header<GossipId>, Malformed> {
        Self::get(buf, read_header)
    }

    fn encode_member(&mut self, member: &Member<GossipId>, buf: impl bytes::BufMut) -> Result<(), Malformed> {
        let mut w = Writer::new();
        Liveness::of(member).write(&mut w);
        Self::put(&w.finish(), buf)
    }

    fn decode_member(&mut self, buf: impl bytes::Buf) -> Result<Member<GossipId>, Malformed> {
        Self::get(buf, Liveness::read).map(|one| Member::new(one.id, one.incarnation, one.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::one_of_each::one_of_each;
    use proptest::prelude::*;

    fn id(n: u8) -> GossipId {
        GossipId { node: NodeId([n; 32]), generation: 5, bump: 6 }
    }

    fn samples() -> [Message<GossipId>; 11] {
        one_of_each!(Message<GossipId>:
            Message::Ping(_) => Message::Ping(1),
            Message::Ack(_) => Message::Ack(2),
            Message::PingReq { .. } => Message::PingReq { target: id(3), probe_number: 3 },
            Message::IndirectPing { .. } => Message::IndirectPing { origin: id(3), probe_number: 4 },
            Message::IndirectAck { .. } => Message::IndirectAck { target: id(3), probe_number: 5 },
            Message::ForwardedAck { .. } => Message::ForwardedAck { origin: id(3), probe_number: 6 },
            Message::Announce => Message::Announce,
            Message::Feed => Message::Feed,
            Message::Gossip => Message::Gossip,
            Message::Broadcast => Message::Broadcast,
            Message::TurnUndead => Message::TurnUndead,
        )
    }

    #[test]
    fn reads_back_every_message() {
        for message in samples() {
            let header = Header { src: id(1), src_incarnation: 9, dst: id(2), message };
            let mut bytes = Vec::new();
            GossipCodec.encode_header(&header, &mut bytes).unwrap();
            assert_eq!(envelope(&bytes).unwrap().source, id(1));
            assert_eq!(envelope(&bytes).unwrap().header, bytes.len());
            let mut rest = &bytes[..];
            assert_eq!(GossipCodec.decode_header(&mut rest).unwrap(), header);
            assert!(rest.is_empty());
        }
    }

    #[test]
    fn leaves_out_members_that_are_not_wanted() {
        let header = Header { src: id(1), src_incarnation: 0, dst: id(2), message: Message::Gossip };
        let mut packet = Vec::new();
        GossipCodec.encode_header(&header, &mut packet).unwrap();
        let envelope = envelope(&packet).unwrap();
        let with = |members: &[u8]| {
            let mut bytes = packet.clone();
            bytes.extend((members.len() as u16).to_be_bytes());
            for n in members {
                GossipCodec.encode_member(&Member::alive(id(*n)), &mut bytes).unwrap();
            }
            bytes.extend(b"objects");
            bytes
        };
        assert_eq!(only(&with(&[3, 4, 5]), &envelope, |one| one.id != id(4)), Ok(with(&[3, 5])));
        assert_eq!(only(&packet, &envelope, |_| false), Ok(packet.clone()));
        let cut = &with(&[3])[..packet.len() + 20];
        assert!(only(cut, &envelope, |_| true).is_err());
    }

    #[test]
    fn a_member_takes_the_bytes_that_limits_count_on() {
        let mut bytes = Vec::new();
        GossipCodec.encode_member(&Member::new(id(1), 7, State::Suspect), &mut bytes).unwrap();
        assert_eq!(bytes.len(), LIVENESS);
        assert_eq!(GossipCodec.decode_member(&bytes[..]).unwrap(), Member::new(id(1), 7, State::Suspect));

        let header = Header { src: id(1), src_incarnation: 0, dst: id(2), message: Message::Gossip };
        let mut packet = Vec::new();
        GossipCodec.encode_header(&header, &mut packet).unwrap();
        assert_eq!((crate::consts::GOSSIP_PACKET - packet.len() - 2) % LIVENESS, 0);
    }

    #[test]
    fn leaves_a_full_buffer_alone() {
        let mut small = [0u8; 10];
        let mut buffer = &mut small[..];
        assert!(GossipCodec.encode_member(&Member::alive(id(1)), &mut buffer).is_err());
        assert_eq!(buffer.len(), 10);
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = GossipCodec.decode_header(&bytes[..]);
            let _ = GossipCodec.decode_member(&bytes[..]);
        }

        /// Behind a header that is right in version and shape, so that all of it is read.
        #[test]
        fn what_it_reads_of_a_packet_it_writes_again(
            kind in 0..11usize,
            ids: [[u8; 32]; 3],
            numbers: [u32; 4],
            members in 0..4usize,
            tail in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let message = samples()[kind].clone();
            let id = |n: usize| GossipId { node: NodeId(ids[n]), generation: numbers[n], bump: numbers[n + 1] };
            let header = Header { src: id(0), src_incarnation: numbers[3] as u16, dst: id(1), message };
            let mut packet = Vec::new();
            GossipCodec.encode_header(&header, &mut packet).unwrap();
            packet.extend((members as u16).to_be_bytes());
            for n in 0..members {
                GossipCodec.encode_member(&Member::alive(id(n % 3)), &mut packet).unwrap();
            }
            packet.extend(tail);
            let envelope = envelope(&packet).unwrap();
            prop_assert_eq!(GossipCodec.decode_header(&packet[..]).unwrap(), header.clone());
            prop_assert_eq!(only(&packet, &envelope, |_| true), Ok(packet.clone()));
            let _ = objects(&packet, &envelope);
            let readdressed = readdressed(&packet, id(2)).unwrap();
            prop_assert_eq!(GossipCodec.decode_header(&readdressed[..]).unwrap().dst, id(2));
            prop_assert_eq!(&readdressed[envelope.header..], &packet[envelope.header..]);
            let keeps_none = header.message == Message::Broadcast || members == 0;
            prop_assert_eq!(only(&packet, &envelope, |_| false).unwrap() == packet, keeps_none);
            // Members that are announced and missing.
            let cut = &packet[..envelope.header + 2 + (members * LIVENESS).saturating_sub(1)];
            let refused = members > 0 && header.message != Message::Broadcast;
            prop_assert_eq!(only(cut, &envelope, |_| true).is_err(), refused);
        }
    }
}
