package cluster

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/lni/dragonboat/v4/raftpb"
	sm "github.com/lni/dragonboat/v4/statemachine"
)

// A snapshot file of Dragonboat has a header, blocks and a tail. The first
// snapshotHeader bytes have the length of the header (8 bytes, little-endian), the
// header, its CRC-32 (0: it has none), and padding. A block has at most
// snapshotBlock bytes, the last one may have fewer, and is followed by its CRC-32.
const (
	snapshotHeader = 1024
	snapshotBlock  = 2 << 20
	snapshotTail   = 16
)

// CheckSnapshot reports, before the shard is started, why the newest snapshot of a
// machine in memory cannot be read: Dragonboat would end the process. It returns
// nil if there is no snapshot. It reads the whole file.
func (s *Shard) CheckSnapshot() error {
	files, err := s.snapshotFiles()
	if err != nil || len(files) == 0 {
		return err
	}
	// The name of the folder is the index, in 16 digits.
	newest := filepath.Join(s.host.cfg.Dir, filepath.FromSlash(slices.MaxFunc(files, func(a, b string) int {
		return cmp.Compare(path.Base(path.Dir(a)), path.Base(path.Dir(b)))
	})))
	if err := checkSnapshotFile(newest); err != nil {
		return fmt.Errorf("the snapshot %s: %w", newest, err)
	}
	return nil
}

// snapshotFiles returns the snapshots of this node's replica.
func (s *Shard) snapshotFiles() ([]string, error) {
	pattern := path.Join("*", "*", "snapshot-part-*",
		fmt.Sprintf("snapshot-%d-%d", s.cfg.ID, s.replica), "snapshot-????????????????", "snapshot-*.gbsnap")
	return fs.Glob(os.DirFS(s.host.cfg.Dir), pattern) // a Glob below Dir, whose own name may look like a pattern
}

// checkSnapshotExists reports that the file of the snapshot is missing on which the
// log builds. The snapshots of a machine on disk have no file.
func (s *Shard) checkSnapshotExists(snapshot raftpb.Snapshot) error {
	if raftpb.IsEmptySnapshot(snapshot) || snapshot.Dummy || snapshot.OnDiskIndex != 0 || snapshot.Type == sm.OnDiskStateMachine {
		return nil
	}
	files, err := s.snapshotFiles()
	if err != nil {
		return err
	}
	name := fmt.Sprintf("snapshot-%016X", snapshot.Index)
	for _, f := range files {
		if path.Base(path.Dir(f)) == name {
			return nil
		}
	}
	return fmt.Errorf("the snapshot at entry %d of shard %s is missing", snapshot.Index, s.cfg.Name)
}

var errChecksum = errors.New("its checksum differs")

func checkSnapshotFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	left := info.Size() - snapshotHeader - snapshotTail
	if left < 0 {
		return io.ErrUnexpectedEOF
	}
	in := bufio.NewReaderSize(f, 1<<20)
	head := make([]byte, snapshotHeader)
	if _, err := io.ReadFull(in, head); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint64(head)
	if n > snapshotHeader-12 {
		return errors.New("its header is too long")
	}
	if sum := binary.BigEndian.Uint32(head[8+n:]); sum != 0 && sum != crc32.ChecksumIEEE(head[8:8+n]) {
		return errChecksum
	}
	block := make([]byte, snapshotBlock+4)
	for left > 0 {
		b := block[:min(left, int64(len(block)))]
		if _, err := io.ReadFull(in, b); err != nil {
			return err
		}
		left -= int64(len(b))
		if len(b) <= 4 || binary.BigEndian.Uint32(b[len(b)-4:]) != crc32.ChecksumIEEE(b[:len(b)-4]) {
			return errChecksum
		}
	}
	return nil
}
