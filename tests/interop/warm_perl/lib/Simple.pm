package Simple;
use strict; use warnings;
our $loaded = 0; $loaded++;
sub name { return "simple $loaded " . __FILE__ . " " . __PACKAGE__ }
1;
