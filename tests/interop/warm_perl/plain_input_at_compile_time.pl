#!/usr/bin/perl
# plain: reads its input
# body: abc\ndef\n
BEGIN { $first = <STDIN> }
print "first $first"; print <STDIN>;
