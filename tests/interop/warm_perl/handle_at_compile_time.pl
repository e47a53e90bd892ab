#!/usr/bin/perl
# Has a position of its own in each request.
BEGIN { open CONFIG, '<', 'lib/config.txt' or die; $first = <CONFIG> }
print "first: $first"; print "then: $_" while <CONFIG>;
