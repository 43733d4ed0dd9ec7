// SPDX-License-Identifier: Apache-2.0
//! The socket between `cluster-updater`, which is root, and `cluster-releases`, which sees the network: neither is harmed by
//! whatever the other says.

use std::{
    io::Write as _,
    net::{Ipv6Addr, Shutdown, SocketAddr},
    os::unix::net::UnixStream,
};

use cluster_updater::releases::{
    seam::{Answer, Link, Offer, Place, Question, can_be_asked, receive, send},
    shelf::Shelf,
};
use cluster_updater_core::{
    outline,
    serving::{Asked, MAX_FILES, Range, is_name},
    sources::{Fault, MAX_RANGE, PORT, Prefix},
};

use super::Script;

const LIST: u8 = 0;
const GET: u8 = 1;
const SERVE: u8 = 2;
const QUESTIONS: u8 = 3;
const OUTLINE: u8 = 4;
const KINDS: u8 = 5;
const PLACE: Place = Place {
    address: SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::LOCALHOST), PORT),
    prefix: Prefix([0x1a; 8]),
};

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let kind = script.u8() % KINDS;
    let wanted = usize::from(script.u16());
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    // All of it fits into the socket.
    theirs.write_all(&script.0[..script.0.len().min(64 << 10)]).expect("the other end is there");
    if kind == QUESTIONS {
        drop(theirs);
        return questions(&ours);
    }
    theirs.shutdown(Shutdown::Write).expect("it was connected");
    let mut link = Link::over(ours);
    match kind {
        LIST => {
            if let Ok(files) = link.list(PLACE) {
                assert!(files.len() <= MAX_FILES && files.iter().all(|(name, _)| is_name(name)));
            }
        }
        GET => {
            // Whatever is said, the buffer stays as long as it was.
            let mut buffer = vec![0; wanted];
            let range = Range { first: 0, bytes: wanted as u64 };
            let _ = link.get(PLACE, "manifest.json", &[range], &mut buffer);
        }
        OUTLINE => {
            if let Ok(outline) =
                link.outline(PLACE, "manifest.json", Range { first: 0, bytes: wanted as u64 })
            {
                assert!(outline.len() as u64 <= outline::most_bytes(wanted as u64));
            }
        }
        _ => {
            let _ = link.serve(&Offer { prefix: PLACE.prefix, files: Vec::new() }, &[]);
            let _ = link.clear();
        }
    }
}

/// Until one is not understood, as `cluster-releases` reads them.
fn questions(stream: &UnixStream) {
    let shelf = Shelf::default();
    let mut open = Vec::new();
    while let Ok(Some(question)) = receive::<Question>(stream, &mut open) {
        assert!(open.is_empty(), "open files came from nowhere");
        let text = serde_json::to_string(&question).expect("what was read can be written");
        assert_eq!(serde_json::from_str::<Question>(&text).ok().as_ref(), Some(&question), "{text}");
        if let Question::Get { ranges, .. } = &question
            && can_be_asked(ranges)
        {
            let asked = Asked::Parts(ranges.clone());
            let path = asked.path(PLACE.prefix, "a");
            let query = path.split_once('?').map_or("", |(_, query)| query);
            assert_eq!(Asked::parse_query(query, u64::MAX).as_ref(), Some(&asked), "{path}");
        }
        if let Question::Serve(offer) = question {
            let (prefix, files) = (offer.prefix, offer.files.len());
            // No open files came along.
            assert_eq!(shelf.put(offer, Vec::new()).is_ok(), files == 0);
            assert_eq!(shelf.get(prefix).is_some(), files == 0);
            shelf.clear();
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let sent = |message: &dyn Fn(&UnixStream)| {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        message(&ours);
        drop(ours);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut &theirs, &mut bytes).expect("it was sent");
        bytes
    };
    let answer = |answer: Answer| sent(&|stream| send(stream, &answer, &[]).expect("it is short"));
    let question = |question: Question| sent(&|stream| send(stream, &question, &[]).expect("it is short"));
    let files = vec![("manifest.json".to_owned(), 700), ("cluster-os_1.1.efi".to_owned(), u64::MAX)];
    let failed = Answer::Failed { fault: Fault::Lied, reason: "it answered `302 Found`".to_owned() };
    let offer = Offer { prefix: PLACE.prefix, files: files.clone() };
    let none = Offer { prefix: PLACE.prefix, files: Vec::new() };
    let to = |kind: u8, wanted: u16, bytes: &[u8]| [&[kind][..], &wanted.to_be_bytes(), bytes].concat();
    let bytes = |count: u32, follow: &[u8]| [&answer(Answer::Bytes(count))[..], follow].concat();
    let range = |first, bytes| Range { first, bytes };
    let get = |ranges: &[Range]| Question::Get {
        place: PLACE,
        name: "manifest.json".to_owned(),
        ranges: ranges.to_vec(),
        within: 10_000,
    };
    let outline = |range| Question::Outline {
        place: PLACE,
        name: "cluster-os_1.1.efi.blocks".to_owned(),
        range,
        within: 10_000,
    };
    vec![
        to(LIST, 0, &answer(Answer::Files(files))),
        to(LIST, 0, &answer(Answer::Files(vec![("../../etc/passwd".to_owned(), 1)]))),
        to(LIST, 0, &answer(Answer::Files(vec![("a".to_owned(), 1); MAX_FILES + 1]))),
        to(LIST, 0, &answer(failed.clone())),
        to(LIST, 0, &answer(Answer::Done)),
        to(LIST, 0, &[]),
        to(LIST, 0, &[0xff; 4]),
        to(LIST, 0, &[0, 0, 0, 0]),
        to(GET, 4, &bytes(4, b"abcd")),
        to(GET, 4, &bytes(4, b"ab")),
        to(GET, 4, &bytes(u32::MAX, b"abcd")),
        to(GET, 4, &answer(failed)),
        to(SERVE, 0, &[answer(Answer::Done), answer(Answer::Done)].concat()),
        to(SERVE, 0, &answer(Answer::Bytes(1))),
        to(
            QUESTIONS,
            0,
            &[question(Question::Clear), question(Question::List { place: PLACE, within: 10_000 })].concat(),
        ),
        to(QUESTIONS, 0, &question(Question::Serve(offer))),
        to(QUESTIONS, 0, &question(Question::Serve(none))),
        to(QUESTIONS, 0, &question(get(&[range(0, 4096)]))),
        to(QUESTIONS, 0, &question(get(&[range(u64::MAX, u64::MAX), range(1, 0)]))),
        to(QUESTIONS, 0, &question(outline(range(0, MAX_RANGE)))),
        to(OUTLINE, 640, &bytes(7, b"\x14abcdef")),
        to(OUTLINE, 640, &bytes(141, &[1; 141])),
        to(OUTLINE, 640, &bytes(0, b"")),
        to(OUTLINE, 640, &bytes(14, b"\x14abcdef")),
        to(QUESTIONS, 0, &[3, 0, 0, 0, b'{', b'}']),
    ]
}
