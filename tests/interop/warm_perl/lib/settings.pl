our $setting = "set " . ++$count;
1;
