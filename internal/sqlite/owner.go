package sqlite

import "github.com/hiqlite/hiqlite/internal/wire"

// hiqlite owns the database, and runs statements of its own on it, on the same
// connections as those of programs. The authorizer and the bound of steps must tell the
// two kinds apart: Conn.asOwner says which kind runs now.

// AsOwner says whether the statements that are prepared and run from now on are
// hiqlite's own. They may do what statements of programs may not, such as begin and
// commit transactions and write the meta table. AsOwner returns a function that restores
// what was set before:
//
//	defer c.AsOwner(true)()
func (c *Conn) AsOwner(on bool) (restore func()) {
	before := c.asOwner
	c.asOwner = on
	return func() { c.asOwner = before }
}

// ExecAsOwner is Exec for statements that only hiqlite may run.
func (c *Conn) ExecAsOwner(sql string) error {
	defer c.AsOwner(true)()
	return c.Exec(sql)
}

// QueryAsOwner runs a statement of hiqlite's own and calls row for each row that it
// returns. An error of row ends the statement, and is returned. If the statement returns
// no rows, row may be nil.
func (c *Conn) QueryAsOwner(sql string, row func(*Stmt) error, args ...wire.Argument) error {
	defer c.AsOwner(true)()
	s, _, err := c.Prepare(sql, false)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Bind(args, nil); err != nil {
		return err
	}
	for {
		more, err := s.Step()
		if err != nil || !more {
			return err
		}
		if err := row(s); err != nil {
			return err
		}
	}
}

// TextsAsOwner returns the first column of a query of hiqlite's own, as texts.
func (c *Conn) TextsAsOwner(sql string, args ...wire.Argument) (texts []string, err error) {
	err = c.QueryAsOwner(sql, func(s *Stmt) error {
		texts = append(texts, string(s.Bytes(0)))
		return nil
	}, args...)
	return texts, err
}

func textArgument(s string) wire.Argument { return wire.Argument{Value: wire.TextValue(s)} }
