PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE notes(id INTEGER PRIMARY KEY, body TEXT, n);
INSERT INTO notes VALUES(1,unistr('first\u000asecond\u0009third'),'0x10');
INSERT INTO notes VALUES(2,unistr('\u001b[1mbold\u001b[0m'),9.0e+999);
INSERT INTO notes VALUES(3,NULL,-1e999);
CREATE TABLE empty(a);
COMMIT;
