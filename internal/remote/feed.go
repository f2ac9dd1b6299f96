package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/shardapi"
)

// A stream is a stream of responses of a server.
type stream[M any] interface {
	Receive() bool
	Msg() M
	Err() error
	Close() error
}

// A seer is a message of a stream.
type seer interface{ GetSeen() *apiv1.Seen }

// A feed is a watcher or a subscription over the API. One goroutine receives, and when
// its stream breaks, it opens another one, on the same node or another, which begins
// after the last item that was received. It receives at most feedBuffer items that
// next has not returned; if the reader is slow, the server waits, and drops items as
// it does with a slow embedded reader.
type feed[M seer] struct {
	client   *Client
	open     func(ctx context.Context, e *endpoint, after *uint64) (stream[M], error)
	position func(M) (at uint64, item bool) // of an item, or of the first message of a stream

	ctx    context.Context // ends with close, or with the client
	cancel context.CancelFunc
	items  chan item[M]  // from the receiving goroutine
	done   chan struct{} // closed when that goroutine has ended
	err    error         // why it ended; set before done is closed
	first  stream[M]     // opened by start, for the goroutine
	after  uint64        // the last item that was received, or where the feed began
	skips  bool          // the feed goes on after items that were forgotten
}

// An item is a response of a stream, or a *shardapi.LaggedError in its place.
type item[M seer] struct {
	message M
	err     error
}

// feedBuffer is how many items a feed receives in advance.
const feedBuffer = 64

func newFeed[M seer](c *Client, open func(context.Context, *endpoint, *uint64) (stream[M], error), position func(M) (uint64, bool)) *feed[M] {
	f := &feed[M]{client: c, open: open, position: position, items: make(chan item[M], feedBuffer), done: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancel(c.ctx)
	return f
}

// start opens the first stream, and returns where it begins.
func (f *feed[M]) start(ctx context.Context, after *uint64) (uint64, error) {
	if err := ctx.Err(); err != nil {
		f.cancel()
		return 0, err
	}
	ctx, cancel := f.client.within(ctx)
	defer cancel()
	s, err := f.connect(ctx, after)
	if err != nil {
		f.cancel()
		var e *protocol.Error
		if errors.As(err, &e) {
			return e.Index, withContext(ctx, asShardError(err))
		}
		return 0, withContext(ctx, err)
	}
	f.first = s
	if !f.client.begin(f.receive) {
		s.Close()
		f.cancel()
		return 0, node.ErrClosed
	}
	return f.after, nil
}

// asShardError returns an error of package shardapi as a node returns it.
func asShardError(err error) error {
	var e *protocol.Error
	if errors.As(err, &e) && len(e.Is) == 1 {
		return e.Is[0]
	}
	return err
}

// connect opens a stream, and receives its first message.
func (f *feed[M]) connect(ctx context.Context, after *uint64) (s stream[M], err error) {
	err = f.client.onSomeNode(ctx, func(e *endpoint) error {
		// The stream lives as long as the feed, but ctx bounds the wait for its first
		// message.
		streamCtx, end := context.WithCancel(f.ctx)
		stop := context.AfterFunc(ctx, end)
		opened, err := f.open(streamCtx, e, after)
		if err != nil {
			stop()
			end()
			return fromConnect(err)
		}
		if !opened.Receive() {
			err := opened.Err()
			opened.Close()
			stop()
			end()
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return fromConnect(err)
		}
		if !stop() {
			opened.Close()
			end()
			return ctx.Err()
		}
		f.after, _ = f.position(opened.Msg())
		s = &endingStream[M]{opened, end}
		return nil
	})
	return s, err
}

// An endingStream ends the context of its stream with it.
type endingStream[M any] struct {
	stream[M]
	end context.CancelFunc
}

func (s *endingStream[M]) Close() error {
	s.end()
	return s.stream.Close()
}

// receive receives items until the feed ends.
func (f *feed[M]) receive() {
	defer close(f.done)
	s := f.first
	for {
		err := f.drain(s)
		s.Close()
		if f.ctx.Err() != nil {
			f.err = errFeedClosed
			return
		}
		if err != nil && !unreachable(err) && !GoingAway(f.ctx, err) && !f.skip(err) {
			f.err = asShardError(err)
			return
		}
		// The connection broke. onSomeNode gives up after a while; the feed does not,
		// because its reader may have no deadline.
		for {
			after := f.after
			if s, err = f.connect(f.ctx, &after); err == nil {
				break
			}
			switch {
			case f.ctx.Err() != nil:
				f.err = errFeedClosed
				return
			case f.skip(err), GoingAway(f.ctx, err):
			case errors.Is(err, node.ErrNoLeader): // onSomeNode does not always wait
				select {
				case <-time.After(maxPause):
				case <-f.ctx.Done():
				}
			default:
				f.err = asShardError(err)
				return
			}
		}
	}
}

// skip reports whether err says that items were forgotten, and the feed goes on after
// them. It tells the reader.
func (f *feed[M]) skip(err error) bool {
	var e *protocol.Error
	if !f.skips || !errors.As(err, &e) || !errors.Is(e, shardapi.ErrTooOld) && !isLagged(e) {
		return false
	}
	select {
	case f.items <- item[M]{err: &shardapi.LaggedError{Lost: e.Index}}:
		f.after = e.Index
	case <-f.ctx.Done():
	}
	return true
}

func isLagged(err error) bool {
	var lagged *shardapi.LaggedError
	return errors.As(err, &lagged)
}

var errFeedClosed = fmt.Errorf("%w: the watcher or subscription", node.ErrClosed)

// drain receives items from a stream until it ends.
func (f *feed[M]) drain(s stream[M]) error {
	for s.Receive() {
		m := s.Msg()
		at, ok := f.position(m)
		if !ok {
			continue
		}
		select {
		case f.items <- item[M]{message: m}:
			f.after = at
		case <-f.ctx.Done():
			return nil
		}
	}
	return fromConnect(s.Err())
}

// next returns the next item.
func (f *feed[M]) next(ctx context.Context) (m M, err error) {
	if err := ctx.Err(); err != nil {
		return m, err
	}
	select {
	case <-f.ctx.Done():
		return m, errFeedClosed
	default:
	}
	select {
	case i := <-f.items:
		return f.deliver(i)
	default:
	}
	select {
	case i := <-f.items:
		return f.deliver(i)
	case <-ctx.Done():
		return m, ctx.Err()
	case <-f.done:
	}
	select {
	case i := <-f.items: // received before the end
		return f.deliver(i)
	default:
		return m, f.err
	}
}

// deliver returns an item to the reader, who may then read everywhere what was written
// before it.
func (f *feed[M]) deliver(i item[M]) (M, error) {
	if i.err == nil {
		f.client.RecordSeen(protocol.WireSeen(i.message.GetSeen()))
	}
	return i.message, i.err
}

func (f *feed[M]) close() { f.cancel() }
