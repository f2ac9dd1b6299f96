// Package raftlog is the Raft log of a node: what Raft must find again after the
// program has ended, for all replicas of the node. It implements Dragonboat's
// raftio.ILogDB.
//
// # Files
//
// A log is a folder of segments, which are numbered without gaps and named after
// their number. A segment begins with a header that names the format, the number of
// the segment and the storage that it belongs to. Records follow. A segment is
// allocated before it is written, because a file that grows makes a sync about twice
// as slow, and a file that is not needed any more is used again.
//
// A record has a header of 32 bytes and a payload, and is padded to a multiple of 8
// bytes. The header has the checksums of itself and of the payload, the length and
// the kind of the payload, the number of the segment, and the durable offset: the
// offset in the segment up to which everything had been synced before the record was
// written. Both checksums are CRC-32C. Since the number of the segment is part of the
// header, what is left of a former use of the file is never taken for a record.
//
// The first record of a segment is a checkpoint. It has everything about all replicas
// but their entries, the offset at which the records of the previous segment end, and
// the number of the oldest segment that is still needed.
//
// # Writing
//
// All callers that have something to write at the same time share one write and one
// sync. A call returns once its records are on disk (see Durability for the levels
// that wait for less). An update that changes nothing but a commit index is not
// written at all: Raft learns the commit index again, from the next leader. The commit
// index is written with the next update.
//
// A failed write or sync is never tried again, because the operating system may have
// dropped the pages that it could not write. The log is of no use afterwards: every
// call returns the error.
//
// # Reading
//
// In memory, the log holds 48 bytes for each record with entries, and no entries. An
// entry is read from its record, whose checksum is checked each time.
//
// # Opening
//
// Open reads all segments. If records end before a segment does, what follows is the
// remainder of a write that was never acknowledged, and is ignored; the next record
// goes to a new segment. But if a later record says that the place had been synced, or
// if there is a later segment, then acknowledged records are lost: Open returns a
// *CorruptError, and changes nothing.
//
// # Giving space back
//
// Raft removes the entries that it does not need any more. Segments are freed from the
// oldest on. Where a few entries of an idle replica are all that is needed of the
// oldest segment, they are copied to the end of the log. So the files take at most
// twice the size of the entries that are needed, and five segments.
package raftlog
