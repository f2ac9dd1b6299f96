package remote

import (
	"context"
	"time"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/protocol"
	"github.com/hiqlite/hiqlite/internal/wire"
)

// Origins are those of one session of this client in a shard. They are used for one
// write at a time.
type Origins struct {
	shard    string
	session  uint64
	sequence uint64 // of the last one
	returned time.Time
}

// maxUnused is how long a session may be unused. The cluster keeps it for an hour.
const maxUnused = 30 * time.Minute

// Next returns the origin of the next write.
func (o *Origins) Next() *wire.Origin {
	o.sequence++
	return &wire.Origin{Session: o.session, Sequence: o.sequence}
}

// TakeOrigins returns origins that nobody else uses. If there are none, it opens a
// session. The caller returns them after the write, unless its outcome is not known or
// the session does not exist any more.
func (c *Client) TakeOrigins(ctx context.Context, shard string) (*Origins, error) {
	c.mu.Lock()
	free := c.origins[shard]
	if n := len(free); n > 0 {
		o := free[n-1]
		if time.Since(o.returned) < maxUnused {
			c.origins[shard] = free[:n-1]
			c.mu.Unlock()
			return o, nil
		}
		c.origins[shard] = nil // the others were returned before it
	}
	c.mu.Unlock()
	id, err := c.OpenOrigins(ctx, shard)
	if err != nil {
		return nil, err
	}
	return &Origins{shard: shard, session: id}, nil
}

// ReturnOrigins lets others use origins.
func (c *Client) ReturnOrigins(o *Origins) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o.returned = time.Now()
	c.origins[o.shard] = append(c.origins[o.shard], o)
}

// OpenOrigins opens a session for origins.
func (c *Client) OpenOrigins(ctx context.Context, shard string) (uint64, error) {
	answer, err := call(ctx, c, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.OpenSessionRequest]) (*connect.Response[apiv1.OpenSessionResponse], error) {
		return e.shards.OpenSession
	}, &apiv1.OpenSessionRequest{Shard: shard})
	return answer.GetSession(), err
}

// CommitOutcome finds out what became of a commit.
func (c *Client) CommitOutcome(ctx context.Context, origin wire.Origin) error {
	answer, err := call(ctx, c, false, func(e *endpoint) func(context.Context, *connect.Request[apiv1.CommitOutcomeRequest]) (*connect.Response[apiv1.CommitOutcomeResponse], error) {
		return e.shards.CommitOutcome
	}, &apiv1.CommitOutcomeRequest{Origin: protocol.Origin(&origin)})
	if err == nil {
		c.RecordSeen(protocol.WireSeen(answer.Seen))
	}
	return err
}
