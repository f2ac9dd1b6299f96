package protocol

import (
	"context"
	"errors"
	"strings"

	"connectrpc.com/connect"

	apiv1 "github.com/hiqlite/hiqlite/api/hiqlite/v1"
	"github.com/hiqlite/hiqlite/internal/node"
	"github.com/hiqlite/hiqlite/internal/shardapi"
	"github.com/hiqlite/hiqlite/internal/wire"
)

var (
	// ErrUnauthorized: the server did not accept the client's secret.
	ErrUnauthorized = errors.New("hiqlite: the server does not accept the secret")
	// ErrLimit: a limit of the server was reached.
	ErrLimit = errors.New("hiqlite: a limit of the server was reached")
)

// reasons are the errors that a program can test for, and how they are sent. The
// first one that fits decides about the code of a Connect error.
var reasons = []struct {
	reason apiv1.Reason
	err    error
	code   connect.Code
}{
	{apiv1.Reason_REASON_UNAUTHORIZED, ErrUnauthorized, connect.CodeUnauthenticated},
	{apiv1.Reason_REASON_OUTCOME_UNKNOWN, node.ErrOutcomeUnknown, connect.CodeUnknown},
	{apiv1.Reason_REASON_SESSION_UNKNOWN, node.ErrSessionUnknown, connect.CodeAborted},
	{apiv1.Reason_REASON_TOO_LARGE, node.ErrTooLarge, connect.CodeInvalidArgument},
	{apiv1.Reason_REASON_LIMIT, ErrLimit, connect.CodeResourceExhausted},
	{apiv1.Reason_REASON_TX_EXPIRED, node.ErrTxExpired, connect.CodeAborted},
	{apiv1.Reason_REASON_DISK_FULL, node.ErrDiskFull, connect.CodeResourceExhausted},
	{apiv1.Reason_REASON_FUNCTION_MISSING, node.ErrFunctionMissing, connect.CodeFailedPrecondition},
	{apiv1.Reason_REASON_DAMAGED, node.ErrDamaged, connect.CodeDataLoss},
	{apiv1.Reason_REASON_NO_LEADER, node.ErrNoLeader, connect.CodeUnavailable},
	{apiv1.Reason_REASON_CLOSED, node.ErrClosed, connect.CodeUnavailable},
	{apiv1.Reason_REASON_TOO_OLD, shardapi.ErrTooOld, connect.CodeOutOfRange},
	{apiv1.Reason_REASON_AHEAD, shardapi.ErrAhead, connect.CodeOutOfRange},
	{apiv1.Reason_REASON_CANCELED, context.Canceled, connect.CodeCanceled},
	{apiv1.Reason_REASON_DEADLINE_EXCEEDED, context.DeadlineExceeded, connect.CodeDeadlineExceeded},
}

// EncodeError encodes err, which is not nil. sql is the error of SQLite in it, or nil.
func EncodeError(err error, sql *apiv1.SQLError, safeToRetry bool) *apiv1.Error {
	out := &apiv1.Error{Message: strings.ToValidUTF8(err.Error(), "\ufffd"), Sql: sql, SafeToRetry: safeToRetry}
	for i := range reasons {
		if errors.Is(err, reasons[i].err) {
			out.Reasons = append(out.Reasons, reasons[i].reason)
		}
	}
	var lagged *shardapi.LaggedError
	if errors.As(err, &lagged) {
		out.Reasons, out.Index = append(out.Reasons, apiv1.Reason_REASON_LAGGED), lagged.Lost
	}
	return out
}

// ConnectError returns the error of a unary call that failed with e.
func ConnectError(e *apiv1.Error) *connect.Error {
	code := connect.CodeInvalidArgument
	if e.Sql == nil {
		code = connect.CodeInternal
	}
	for i := len(reasons) - 1; i >= 0; i-- {
		for _, r := range e.Reasons {
			if r == reasons[i].reason {
				code = reasons[i].code
			}
		}
	}
	out := connect.NewError(code, errors.New(e.Message))
	if detail, err := connect.NewErrorDetail(e); err == nil {
		out.AddDetail(detail)
	}
	return out
}

// An Error is an error that a server has sent.
type Error struct {
	Text        string
	Is          []error     // of reasons
	SQL         *wire.Error // nil: it is not an error of SQLite
	SafeToRetry bool
	Index       uint64
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns what can be tested for.
func (e *Error) Unwrap() []error {
	all := e.Is[:len(e.Is):len(e.Is)]
	if e.SQL != nil {
		all = append(all, e.SQL)
	}
	return all
}

// DecodeError decodes an error. Of nil it returns nil.
func DecodeError(e *apiv1.Error) error {
	if e == nil {
		return nil
	}
	out := &Error{Text: e.Message, SafeToRetry: e.SafeToRetry, Index: e.Index}
	if s := e.Sql; s != nil {
		out.SQL = &wire.Error{Code: int(s.Code), Message: s.Message, Hint: s.Hint, Statement: int(s.Statement)}
	}
	for _, r := range e.Reasons {
		if r == apiv1.Reason_REASON_LAGGED {
			out.Is = append(out.Is, &shardapi.LaggedError{Lost: e.Index})
		}
		for i := range reasons {
			if reasons[i].reason == r {
				out.Is = append(out.Is, reasons[i].err)
			}
		}
	}
	return out
}
