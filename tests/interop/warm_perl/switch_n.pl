#!/usr/bin/perl -n
# body: one\ntwo\n
BEGIN { print "begin\n" if 0 } print "$.: $_"; END { print "end $.\n" }
