#!/usr/bin/perl
BEGIN { open SAVED, ">&STDOUT" or die }
print SAVED "saved\n"; close SAVED; print "kept\n";
open STDOUT, '>', 'redirected.txt' or die; print "into file\n"; close STDOUT;
