package sqlite

// HasTemp reports that there are TEMP objects on this connection.
func (c *Conn) HasTemp() (bool, error) {
	own := c.own
	c.own = true
	defer func() { c.own = own }()
	s, _, err := c.Prepare("SELECT 1 FROM sqlite_temp_schema LIMIT 1", false)
	if err != nil {
		return false, err
	}
	defer s.Close()
	return s.Step()
}
