#!/usr/bin/perl -w
# Said anew for each request.
$once = 1;
my $y = 1; my $y = 2;
print "y=$y\n";
