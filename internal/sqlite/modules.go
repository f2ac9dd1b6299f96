package sqlite

import lib "modernc.org/sqlite/lib"

// moduleSpeaks reports that what is being compiled is not the statement itself,
// but one that a virtual table's module prepares for itself meanwhile. It does so
// when it is used first on a connection: what a statement does must not seem to
// depend on that.
func (c *Conn) moduleSpeaks() bool {
	for p := c.struct3().FpParse; p != 0; {
		parse := at[lib.TParse](p)
		if parse.FpOuterParse != 0 && parse.FpToplevel == 0 { // a trigger's has both
			return true
		}
		p = parse.FpOuterParse
	}
	return false
}
