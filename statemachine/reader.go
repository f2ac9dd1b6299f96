package statemachine

import (
	"io"

	sm "github.com/lni/dragonboat/v4/statemachine"
)

// MaxIdleDecoder bounds, in bytes, the memory that a machine keeps in one entry
// decoder for the entries to come.
const MaxIdleDecoder = 256 << 10

// StoppableReader returns a reader that reads from r until done is closed, and
// returns Dragonboat's ErrSnapshotStopped from then on.
func StoppableReader(r io.Reader, done <-chan struct{}) io.Reader {
	return &stoppable{r, done}
}

type stoppable struct {
	io.Reader
	done <-chan struct{}
}

func (s *stoppable) Read(b []byte) (int, error) {
	select {
	case <-s.done:
		return 0, sm.ErrSnapshotStopped
	default:
		return s.Reader.Read(b)
	}
}
